import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learners.checkpoints import Checkpoints
from learners.memory import MemoryData
from learners.rlpd import RlpdConfig, plugin
from learners.runner import Runner, RunnerConfig
from learners.testing import SPEC, synthetic_data
from user_system.core.clock import SECOND
from user_system.core.errors import ConfigError, DamageError, LinkError, PluginError
from user_system.core.interfaces import NotReady, Report


class Clock:
    """Time passes only where the loop waits or the learner works."""

    def __init__(self) -> None:
        self.now = 0

    def now_ns(self) -> int:
        return self.now

    def sleep_until(self, deadline_ns: int) -> None:
        self.now = max(self.now, deadline_ns)


class AtOnce(Executor):
    """Runs what it is given before it returns."""

    def submit(self, call: Any, /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(call(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class Counting:
    """A learner whose update takes 0.1 s and whose weights are the number of its updates."""

    def __init__(self, clock: Clock, data: MemoryData) -> None:
        self.clock, self.data, self.n = clock, data, 0
        self.before: Callable[[], None] = lambda: None
        self.report: dict[str, Any] = {}

    def update(self) -> Report:
        self.clock.now += SECOND // 10
        self.before()
        self.n += 1
        return Report(**{"metrics": {"n": float(self.n)}, **self.report})

    def weights(self) -> tuple[dict, dict]:
        return {"policy": {"n": np.array([float(self.n)])}}, {"mean": np.zeros(1)}

    def state_dict(self) -> dict:
        return {"n": self.n}

    def load_state_dict(self, state: dict) -> None:
        self.n = int(state["n"])


class Rig:
    def __init__(self, path: Path, aside: Executor | None = None, **config: float) -> None:
        self.clock, self.data = Clock(), synthetic_data(SPEC, steps=90)
        self.learner = Counting(self.clock, self.data)
        self.published: list[tuple[float, float]] = []
        """(time in s, updates in the weights)"""
        self.reports: list[dict] = []
        self.away = False
        self.active = True
        self.runner = Runner(
            self.learner,
            self.data,
            publish=self.publish,
            checkpoints=Checkpoints(path),
            report=lambda figures: self.reports.append(dict(figures)),
            name="counting",
            active=lambda: self.active,
            aside=aside,
            config=RunnerConfig(**config),
            clock=self.clock,
        )

    def publish(self, modules: Any, statistics: Any, notes: Any) -> int:
        if self.away:
            raise LinkError("the store is away")
        assert notes["updates"] == self.runner.updates
        self.published.append((self.clock.now / SECOND, float(modules["policy"]["n"][0])))
        return len(self.published)

    def run(self, seconds: float) -> None:
        until = self.clock.now + int(seconds * SECOND)
        self.runner.run(lambda: self.clock.now >= until)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, AtOnce())


def test_weights_are_published_in_time(rig: Rig) -> None:
    rig.run(10)
    times = [t for t, _ in rig.published]
    assert max(np.diff(times)) <= 1.2
    assert len(times) <= 12
    assert rig.published[-1][1] == 100  # what is new at the end is not forgotten


def test_learning_goes_on_while_weights_are_on_their_way(tmp_path: Path) -> None:
    """The store takes until the 60th update over the first weights; nobody waits for it."""
    rig, arrived, heard = Rig(tmp_path), threading.Event(), []

    def publish(modules: Any, statistics: Any, notes: Any) -> int:
        assert arrived.wait(60)
        heard.append((notes["updates"], float(modules["policy"]["n"][0])))
        return len(heard)

    def before() -> None:
        rig.learner.shared += 1.0
        if rig.learner.n == 60:
            arrived.set()
            while rig.runner._sending is not None and not rig.runner._sending.done():
                time.sleep(0.001)

    rig.learner.shared = np.zeros(1)
    rig.learner.weights = lambda: (
        {"policy": {"n": rig.learner.shared}},
        {},
    )  # written to all along
    rig.runner._publish = publish
    rig.learner.before = before
    rig.run(10)
    assert heard[0] == (10, 10.0), "as they were when they were offered"
    assert heard[1][0] > 60, "one at a time"
    assert heard[-1] == (100, 100.0)
    assert rig.runner.version == len(heard)


def test_a_learner_may_ask_for_it_sooner_but_not_flood(rig: Rig) -> None:
    rig.learner.report = {"publish": True}
    rig.run(10)
    assert min(np.diff([t for t, _ in rig.published][:-1])) > 0.199
    assert len(rig.published) > 30


def test_nothing_new_is_not_published(rig: Rig) -> None:
    def not_ready() -> None:
        raise NotReady

    rig.learner.before = not_ready
    rig.run(5)
    assert rig.published == []


def test_a_store_that_is_away_is_asked_again(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.away = True
    rig.run(3)
    assert rig.published == []
    assert "not published" in caplog.text
    assert rig.runner.stats()["publish_failures"] >= 2
    rig.away = False
    rig.run(2)
    assert rig.published[0][1] > 30


def test_a_learner_gets_the_steps_it_asked_for(rig: Rig) -> None:
    rig.learner.report = {"wants_steps": 10}
    rig.run(3)
    assert rig.learner.n == 1
    more = synthetic_data(SPEC, steps=90)
    for step in more._steps[30:39]:
        rig.data.add(step)
    rig.run(1)
    assert rig.learner.n == 1
    rig.data.add(more._steps[39])
    rig.run(1)
    assert rig.learner.n == 2


def test_nothing_is_learned_while_inactive(rig: Rig) -> None:
    rig.run(1)
    rig.active = False
    rig.run(5)
    assert rig.learner.n == 10


def test_figures_are_reported(rig: Rig) -> None:
    rig.run(5)
    assert len(rig.reports) == 25
    assert rig.reports[-1]["updates_per_s"] == pytest.approx(10, rel=0.2)
    assert {"n", "updates", "version", "update_ms", "publish_age_s"} <= rig.reports[-1].keys()


def test_a_restart_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    one = Rig(tmp_path, AtOnce(), checkpoint_s=2)

    def crash() -> None:
        if one.learner.n == 55:
            raise RuntimeError("power cut")

    one.learner.before = crash
    with pytest.raises(PluginError, match=r"counting failed in update.*RuntimeError: power cut"):
        one.run(10)
    other = Rig(tmp_path, AtOnce())
    assert other.runner.resume()
    assert other.learner.n == other.runner.updates == 40
    assert other.data.state_dict() == one.data.state_dict()
    assert len(list(tmp_path.iterdir())) == 2  # older ones are gone
    other.run(0.5)
    assert other.published  # the store may lack what the crash kept back


def test_there_may_be_nothing_to_resume(rig: Rig) -> None:
    assert not rig.runner.resume()


def test_a_damaged_checkpoint_is_passed_over_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    checkpoints = Checkpoints(tmp_path)
    for n in (1, 2, 3):
        checkpoints.save(n, {"n": n, "a": np.arange(n)})
    newest = tmp_path / "checkpoint-000000000003.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    tree = checkpoints.newest()
    assert tree is not None
    assert tree["n"] == 2
    assert "damaged" in caplog.text
    assert newest.with_suffix(".damaged").exists()


def test_no_readable_checkpoint_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"n": 1})
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(DamageError, match="000000000001"):
        checkpoints.newest()


def test_weights_that_are_not_finite_are_not_published(rig: Rig) -> None:
    rig.learner.weights = lambda: ({"policy": {"w": np.array([np.nan])}}, {})  # type: ignore[method-assign]
    with pytest.raises(PluginError, match=r"policy\.w"):
        rig.run(5)
    assert rig.published == []


def test_metrics_that_are_not_finite_stop_the_learner(rig: Rig) -> None:
    rig.learner.report = {"metrics": {"loss": float("nan")}}
    with pytest.raises(PluginError, match=r"counting.*loss"):
        rig.run(5)
    assert rig.published == []


@pytest.mark.parametrize("bad", [{"publish_s": 3.0}, {"publish_min_s": 1.5}])
def test_weights_may_not_be_kept_back(bad: dict) -> None:
    with pytest.raises(ConfigError):
        RunnerConfig(**bad)


def test_a_killed_learner_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """With a real learner: 6 units, or 3, a checkpoint, a new process's objects, and 3 more."""

    def build(path: Path) -> tuple[Any, Runner]:
        data = synthetic_data(SPEC)
        config = RlpdConfig(hidden=(16,), batch=32)
        learner = plugin.make_learner(SPEC, config, data=data, seed=0)
        runner = Runner(
            learner,
            data,
            publish=lambda modules, statistics, notes: 1,
            checkpoints=Checkpoints(path),
            report=lambda figures: None,
        )
        return learner, runner

    def work(runner: Runner, units: int) -> None:
        goal = runner.updates + 2 * units
        runner.run(lambda: runner.updates >= goal)

    straight, runner = build(tmp_path / "a")
    work(runner, 6)
    _, runner = build(tmp_path / "b")
    work(runner, 3)
    resumed, runner = build(tmp_path / "b")
    assert runner.resume()
    work(runner, 3)
    np.testing.assert_equal(resumed.weights(), straight.weights())


def test_a_reader_that_is_away_stops_neither_publishing_nor_checkpoints(
    rig: Rig, tmp_path: Path
) -> None:
    """Steps are counted when it is back, and then as many fresh ones are waited for as ever."""
    there, counting = rig.data.count("online"), threading.Event()

    def count(view: str = "all") -> int:
        if not counting.is_set():
            raise NotReady("the reader is away")
        return there

    rig.data.count = count  # type: ignore[method-assign]
    rig.learner.report = {"wants_steps": 5}
    rig.run(30)
    assert rig.learner.n == rig.runner.updates == 1
    assert [n for _, n in rig.published] == [1]
    assert Checkpoints(tmp_path).newest()["updates"] == 1
    counting.set()
    rig.run(1)
    there += 4
    rig.run(1)
    assert rig.learner.n == 1, "fewer fresh steps than it wanted"
    there += 1
    rig.run(1)
    assert rig.learner.n == 2


def test_before_anything_was_drawn_there_is_no_checkpoint_and_no_end(
    rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def nobody_knows() -> Any:
        raise NotReady("the reader is away")

    rig.learner.before = rig.data.state_dict = nobody_knows  # type: ignore[method-assign]
    rig.run(30)
    assert Checkpoints(tmp_path).newest() is None
    assert 1 <= caplog.text.count("no checkpoint: the reader is away") <= 4
