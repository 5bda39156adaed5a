"""Frames that nobody should send, through every door: all that listen stay there, and stay small.

Real processes, of the head and of a site with a shard of its own; the page over TLS. While they are
thrown at, those who work are answered as before.
"""

import random
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kit.heads import Whole
from kit.honest import Honest
from kit.tally import Tally
from kit.throwers import SHARES, THROWERS, Calls, Thrower

if TYPE_CHECKING:
    from conftest import Size

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(3000)]

GROWTH_MB = 32.0
HANG_S = 1.0
LOG_MB = 8.0


def together(throwers: dict[str, Thrower], frames: int) -> None:
    """Throw so many frames, all kinds at once; raise what a thrower raised."""
    errors: list[BaseException] = []

    def run(name: str, thrower: Thrower) -> None:
        try:
            thrower.throw(max(1, round(frames * SHARES[name])))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=item, name=item[0]) for item in throwers.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_whatever_is_thrown_at_the_head(
    tmp_path: Path, rng: random.Random, size: "Size", tally: Tally
) -> None:
    frames = size.frames
    with Whole(tmp_path) as heads, Honest(heads) as honest:
        throwers = {n: make(heads, random.Random(rng.random())) for n, make in THROWERS.items()}
        time.sleep(3.0)
        before_slowest = dict(honest.slowest)
        # What is made at the first use of everything is no growth.
        together(throwers, max(500, frames // 20))
        honest.begin()
        before = heads.memory()
        began = time.monotonic()
        together(throwers, frames)
        took = time.monotonic() - began
        time.sleep(2.0)
        assert all(heads.alive().values()), _ends(heads)
        after = heads.memory()
        for thrower in throwers.values():
            thrower.close()
        assert not honest.failed, honest.failed
        slowest, answered = dict(honest.slowest), dict(honest.answered)
        worst, noise = dict(honest.worst), honest.noise.worst()
        logs = {kind: heads.log(kind).stat().st_size / 1e6 for kind in heads.KINDS}
    growth = {kind: round(after[kind] - before[kind], 1) for kind in before}
    thrown = {name: thrower.thrown for name, thrower in throwers.items()}
    said = {name: dict(thrower.answers.most_common(6)) for name, thrower in throwers.items()}
    print(f"{thrown} in {took:.0f} s; grew by {growth} MB; logs {logs}; answered {answered}")
    calls = throwers["gRPC"]
    assert isinstance(calls, Calls)
    print(calls.away, calls.replies)
    print(f"slowest answers {slowest}, before {before_slowest}; {said}")
    print(f"without what a bare timer was late by meanwhile {worst}; it at most {noise:.2f} s")
    tally.add(
        "frames that nobody should send",
        f"{sum(thrown.values()):,} through {len(thrown)} doors",
        growth_mb=max(growth.values()),
        slowest_answer_s=round(max(slowest.values()), 2),
        of_that_not_noise_s=round(max(worst.values()), 2),
        without_them_s=round(max(before_slowest.values()), 2),
    )
    assert calls.replies.keys() == {"hub", "replay", "reader", "policy", "shard"}, "all are reached"
    assert max(growth.values()) <= GROWTH_MB
    assert max(logs.values()) <= LOG_MB
    assert max(worst.values()) <= HANG_S, (worst, slowest, noise)
    assert min(answered.values()) > 10


def _ends(heads: Whole) -> str:
    dead = [kind for kind, lives in heads.alive().items() if not lives]
    return "\n".join(f"{kind}: {heads.log(kind).read_text()[-3000:]}" for kind in dead)
