"""Readers that die or get stuck in a snapshot, and readers that draw while data is thrown away."""

import signal
from pathlib import Path

import pytest
from kit import made
from kit.history import History, Stored
from kit.zygote import Child, Zygote

pytestmark = [pytest.mark.chaos, pytest.mark.system, pytest.mark.timeout(600)]

QUOTA, SIDE = 12 << 20, 48
ALLOWED = 1.3
"""Times the quota that the file may grow to."""


def churned(child: Child) -> dict:
    """Let a writer append many quotas; return what it says then."""
    child.send("go")
    return child.receive(300)


def check(answer: dict) -> History:
    """What is left is whole, in order and right, and all that is missing is older than it."""
    history, name = History(), made.name(0)
    for sequence in range(answer["acked"]):
        digest = made.digest(made.fragment(name, 1, sequence, SIDE))
        history.submit(name, 1, sequence, digest)
    history.ack(name, 1, answer["acked"])
    rows = [Stored(*row) for row in answer["rows"]]
    assert rows
    history.forgotten[name, 1] = rows[0].sequence
    assert rows[0].sequence % made.PIECES == 0  # whole episodes go
    verdict = history.check(rows)
    assert verdict.ok, verdict
    return history


def start(zygote: Zygote, place: Path, quotas: float) -> Child:
    """Start a writer whose store has reached its quota."""
    with zygote.start(
        "stores:churn", path=place / "replay", quota=QUOTA, quotas=1.2, side=SIDE
    ) as first:
        assert first.receive() == "open"
        churned(first)
        first.kill()
    child = zygote.start(
        "stores:churn", path=place / "replay", quota=QUOTA, quotas=quotas, side=SIDE
    )
    assert child.receive() == "open"
    return child


@pytest.mark.parametrize("fate", ["killed", "stopped"])
def test_a_reader_that_does_not_come_back_costs_no_more_than_a_third(
    zygote, memory, size, tally, fate
):
    with start(zygote, memory, size.quotas) as writer:
        held = zygote.start("stores:hold", path=memory / "replay")
        assert held.receive() == "holding"
        if fate == "killed":
            held.kill()
        else:
            held.signal(signal.SIGSTOP)
        answer = churned(writer)
    check(answer)
    times = answer["peak"] / QUOTA
    tally.add(
        f"a {fate} reader in a snapshot",
        f"{size.quotas} quotas appended",
        file_at_most=f"{times:.2f} times the quota",
        appends_put_off=answer["refused"],
    )
    assert times <= ALLOWED


def test_what_is_drawn_while_episodes_are_thrown_away_is_right(zygote, memory, size, tally, seed):
    with start(zygote, memory, size.quotas) as writer:
        readers = [
            zygote.start("wire:learn", path=memory / "replay", seed=seed + i, side=SIDE)
            for i in range(2)
        ]
        for reader in readers:
            assert reader.receive() == "ready"
        answer = churned(writer)
        for reader in readers:
            reader.send("stop")
        seen = [reader.receive() for reader in readers]
    check(answer)
    rows = sum(s["rows"] for s in seen)
    wrong = [number for s in seen for number in s["wrong"]]
    tally.add(
        "two readers drawing while episodes are thrown away",
        f"{size.quotas} quotas appended",
        rows_drawn=f"{rows:,}",
        of_them_wrong=len(wrong),
    )
    assert rows > 0
    assert not wrong
    assert not any(s["damaged"] for s in seen)
