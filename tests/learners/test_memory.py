import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.memory import MemoryData, Step, shares
from user_system.core.draws import Weigh
from user_system.core.errors import ConfigError
from user_system.core.interfaces import Draw, NotReady
from user_system.core.types import End, Purpose, Segment


def fill(lengths: list[int], end: End = End.TERMINATED, segment: Segment = Segment.AUTO):
    """Observation k counts up within and across episodes; the border one is nobody's start."""
    data, count = MemoryData(0), 0
    for length in lengths:
        for k in range(length):
            here, there = ({"n": np.array([count + d], np.float32)} for d in (0, 1))
            last = k == length - 1
            action = np.array([count], np.float32)
            data.add(Step(here, action, float(count), there, segment, end if last else End.NONE))
            count += 1
        count += 1
    return data


def test_what_follows_is_what_was_recorded() -> None:
    batch = fill([3, 1, 5]).draw(Draw(n=200))
    np.testing.assert_array_equal(batch.next_observation["n"], batch.observation["n"] + 1)
    np.testing.assert_array_equal(batch.action, batch.observation["n"])


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(1, 5), st.booleans())
def test_nstep_sums_stay_within_their_episode(lengths, length, terminated) -> None:
    end = End.TERMINATED if terminated else End.TIMEOUT
    data, gamma = fill(lengths, end), 0.5
    starts, count = {}, 0
    for n in lengths:
        for k in range(n):
            starts[count] = n - k  # steps left in the episode
            count += 1
        count += 1
    batch = data.draw(Draw(n=64, unit="nstep", length=length, gamma=gamma))
    for i in range(64):
        start = int(batch.observation["n"][i, 0])
        reach = min(length, starts[start])
        assert batch.next_observation["n"][i, 0] == start + reach
        assert batch.reward[i] == pytest.approx(
            sum(gamma**k * (start + k) for k in range(reach)), rel=1e-5
        )
        ended = reach == starts[start]
        assert batch.end[i] == (end if ended else End.NONE)
        assert batch.discount[i] == pytest.approx(0 if ended and terminated else gamma**reach)


def test_windows_say_where_they_end() -> None:
    batch = fill([2, 3]).draw(Draw(n=50, unit="window", length=3))
    assert batch.action.shape == (50, 3, 1)
    for i in range(50):
        start = int(batch.observation["n"][i, 0, 0])
        left = {0: 2, 1: 1, 3: 3, 4: 2, 5: 1}[start]
        assert batch.valid[i].tolist() == [k < left for k in range(3)]


def test_a_sum_does_not_cross_segments_unless_allowed() -> None:
    data = MemoryData(0)
    for k, segment in enumerate([Segment.AUTO, Segment.CORRECTION]):
        data.add(Step({"n": np.zeros(1)}, np.zeros(1), 1.0, {"n": np.ones(1)}, segment, End(k)))
    mix = {"auto": 1.0}
    cross = data.draw(Draw(4, "nstep", 2, 0.5, mix))
    stay = data.draw(Draw(4, "nstep", 2, 0.5, mix, cross_segments=False))
    assert cross.reward.tolist() == [1.5] * 4
    assert stay.reward.tolist() == [1.0] * 4


def test_mixes_are_exact_and_views_are_what_they_say() -> None:
    data = MemoryData(0)
    for segment in Segment:
        o = {"n": np.array([int(segment)], np.float32)}
        data.add(Step(o, np.zeros(1), 0.0, o, segment))
        data.add(Step(o, np.zeros(1), 0.0, o, segment), Purpose.EVAL)
        data.add(Step(o, np.zeros(1), np.nan, o, segment))
    assert {view: data.count(view) for view in ("all", "online", "demos", "prior", "auto")} == {
        "all": 4, "online": 3, "demos": 1, "prior": 3, "auto": 1,
    }  # fmt: skip
    batch = data.draw(Draw(n=100, mix={"demos": 0.3, "auto": 0.7}, columns=("segment",)))
    assert (batch.extras["segment"] == Segment.DEMO).sum() == 30
    assert (batch.extras["segment"] == Segment.AUTO).sum() == 70


@given(
    st.dictionaries(st.text(max_size=3), st.floats(0.01, 10), min_size=1, max_size=5),
    st.integers(1, 500),
)
def test_shares_add_up(mix: dict[str, float], n: int) -> None:
    counts = shares(mix, n)
    assert sum(counts.values()) == n
    total = sum(mix.values())
    assert all(abs(counts[v] - n * mix[v] / total) < 1 for v in mix)


def test_consume_gives_each_step_once_in_order() -> None:
    data = fill([5])
    got = [data.consume(Draw(n=2)).reward.tolist() for _ in range(2)]
    assert got == [[0, 1], [2, 3]]
    with pytest.raises(NotReady):
        data.consume(Draw(n=2))


def test_draws_repeat_from_a_state() -> None:
    data = fill([50])
    state = data.state_dict()
    first = data.draw(Draw(n=20)).ids
    assert not np.array_equal(first, data.draw(Draw(n=20)).ids)
    data.load_state_dict(state)
    np.testing.assert_array_equal(first, data.draw(Draw(n=20)).ids)


def test_an_empty_view_is_not_ready_and_an_unknown_one_an_error() -> None:
    data = fill([3])
    with pytest.raises(NotReady, match="demos"):
        data.draw(Draw(n=2, mix={"all": 0.5, "demos": 0.5}))
    with pytest.raises(ConfigError, match="nobody"):
        data.count("nobody")


def test_growing_keeps_what_is_there() -> None:
    data = fill([1500, 1000])
    batch = data.draw(Draw(n=2000))
    np.testing.assert_array_equal(batch.reward, batch.observation["n"][:, 0])
    assert data.count() == 2500


@pytest.mark.parametrize(
    "request_",
    [Draw(1, history=2), Draw(1, weigh=Weigh("segment")), Draw(1, reward="progress")],
    ids=["history", "weigh", "reward"],
)
def test_what_memory_cannot_answer_is_refused(request_):
    data = MemoryData()
    with pytest.raises(ConfigError, match="draws from memory know no"):
        data.draw(request_)
