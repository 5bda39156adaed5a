"""Whether a worker is there, with its silence in the test's hands."""

from types import SimpleNamespace

import pytest

from user_system.edge.patience import StationConfig
from user_system.edge.presence import Change, Presence

CONFIG = StationConfig(hang_s=1.0, begin_s=5.0, think_s=10.0)


@pytest.fixture
def worker():
    return SimpleNamespace(alive=True, silent_s=0.0, thinking_s=0.0)


@pytest.fixture
def presence(worker):
    return Presence(worker, CONFIG, "p", "t")


def test_it_comes_and_goes_once(presence, worker):
    assert presence.look(recording=False) == [Change("came")]
    assert presence.look(recording=True) == []
    worker.alive = False
    assert presence.look(recording=True) == [Change("lost", "the worker of policy 'p' died")]
    assert presence.look(recording=True) == []
    assert not presence.hung


@pytest.mark.parametrize(
    ("silent_s", "thinking_s", "recording", "patience"),
    [(1.5, 0.0, True, "1.0 s"), (5.5, 0.0, False, "5.0 s"), (0.0, 11.0, True, "10.0 s")],
)
def test_silence_is_a_hang_until_its_link_is_gone(
    presence, worker, silent_s, thinking_s, recording, patience
):
    presence.look(recording=recording)
    worker.silent_s, worker.thinking_s = silent_s, thinking_s
    (change,) = presence.look(recording=recording)
    assert change.what == "lost"
    assert f"hangs, silent for {patience}" in change.why
    assert presence.hung
    worker.silent_s = worker.thinking_s = 0.0
    assert presence.look(recording=recording) == [], "it is to be killed, whatever it says now"
    worker.alive = False
    assert presence.look(recording=recording) == []
    assert not presence.hung
    worker.alive = True
    assert presence.look(recording=recording) == [Change("came")]


def test_what_prepares_an_episode_may_take_longer(presence, worker):
    presence.look(recording=False)
    worker.silent_s = 1.5
    assert presence.look(recording=False) == []
    assert presence.up
