"""The N-th system call of a writer fails, for every N: what it promised holds all the same."""

import random
from collections import Counter

import pytest
from kit.recovery import failures, reopened

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.system,
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("strace"),
]

OPERATIONS, PRODUCERS, SIDE = 30, 3, 24


def test_every_call_may_fail(zygote, memory, rng: random.Random, seed, size, tally):
    arguments = {"seed": seed, "operations": OPERATIONS, "producers": PRODUCERS, "side": SIDE}
    verdicts, said, ended = [], 0, Counter()
    for failure in failures(zygote, memory, "stores:work", size.failed_calls, rng, **arguments):
        assert failure.status >= 0, failure
        said += bool(failure.complaints)
        ended[failure.status] += 1
        try:
            verdicts.append(reopened(zygote, failure.path, failure.history))
        except AssertionError as wrong:
            raise AssertionError(str(failure)) from wrong
    tally.add(
        "a writer's N-th system call fails with EIO or ENOSPC",
        f"{len(verdicts)} failures, N up to 200",
        *verdicts,
        said_by_the_store=said,
        writers_ended_by_an_exception=ended[1],
    )
    assert said > len(verdicts) // 4  # else nothing was disturbed
