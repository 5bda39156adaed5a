"""Samples at their own rates: checked, bounded, cut by time."""

import numpy as np
import pytest

from user_system.core.errors import SpecError
from user_system.core.specs import Field, StreamSpec
from user_system.core.types import Stream
from user_system.edge.samples import KEEP_S, Samples, most_bytes

SPECS = {"force": StreamSpec(Field((3,), "float32", "N"), 100.0)}


def force(*stamps, value=0.0):
    return {
        "force": Stream(np.array(stamps, np.int64), np.full((len(stamps), 3), value, np.float32))
    }


def test_what_is_taken_goes_once_and_in_order():
    samples = Samples()
    samples.add(force(1, 2, 3, value=1.0))
    samples.add({})
    samples.add(force(4, 5, value=2.0))
    assert samples.take(1) == {}
    early = samples.take(5)["force"]
    assert early.stamps.tolist() == [1, 2, 3, 4]
    assert early.values[:, 0].tolist() == [1, 1, 1, 2]
    assert samples.take(100)["force"].stamps.tolist() == [5]
    assert samples.take(100) == {}


def test_peeking_takes_nothing():
    samples = Samples(SPECS)
    samples.add(force(1, 2))
    assert samples.waiting()["force"].stamps.tolist() == [1, 2]
    samples.add(force(3))
    assert samples.waiting()["force"].stamps.tolist() == [1, 2, 3]
    samples.clear()
    assert samples.waiting() == {}
    with pytest.raises(SpecError, match=r"do not increase.*got 3"):
        samples.add(force(3))


def test_the_oldest_go_where_nobody_takes_them():
    samples = Samples(SPECS)
    for n in range(300):
        samples.add(force(n))
    kept = samples.waiting()["force"].stamps
    assert kept.tolist() == list(range(200, 300))
    assert samples.dropped == 200
    assert most_bytes(SPECS) >= KEEP_S * 100 * (8 + 12)


@pytest.mark.parametrize(
    ("name", "stamps", "values", "match"),
    [
        ("forse", [1], np.zeros((1, 3), np.float32), "unknown stream.*forse.*force"),
        ("force", [1], np.zeros((1, 2), np.float32), "shape"),
        ("force", [1], np.zeros((2, 3), np.float32), "shape"),
        ("force", [1], np.zeros((1, 3), np.float64), "dtype"),
        ("force", [1], np.full((1, 3), np.nan, np.float32), "not finite"),
        ("force", [2, 2], np.zeros((2, 3), np.float32), "do not increase.*above 2"),
        ("force", [1.0], np.zeros((1, 3), np.float32), "int64"),
        ("force", 1, np.zeros((1, 3), np.float32), "int64"),
    ],
)
def test_what_was_not_declared_is_refused_whole(name, stamps, values, match):
    samples = Samples(SPECS)
    with pytest.raises(SpecError, match=match):
        samples.add({**force(5), name: Stream(np.array(stamps), values)})
    assert samples.waiting() == {}


@pytest.mark.parametrize("hz", [0.0, -1.0, float("nan"), float("inf")])
def test_a_stream_has_a_rate(hz):
    with pytest.raises(SpecError, match="rate of a stream"):
        StreamSpec(Field((3,)), hz)
