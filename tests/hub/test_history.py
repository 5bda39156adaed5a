"""Which versions are kept: the newest ones, and one of about any age before."""

from hypothesis import given
from hypothesis import strategies as st

from user_system.hub.history import kept

NEWEST, OLDER = 4, 16


def published(count: int, gaps: frozenset[int] = frozenset()) -> set[int]:
    """Return what is there after versions 1 to ``count``, forgotten one by one as they come."""
    there: set[int] = set()
    for version in range(1, count + 1):
        if version not in gaps:
            there = kept(there | {version}, NEWEST, OLDER)
    return there


@given(st.integers(1, 3000))
def test_a_version_from_about_as_far_back_as_asked_for_is_there(count: int) -> None:
    there = published(count)
    assert {v for v in range(count - NEWEST + 1, count + 1) if v > 0} <= there
    assert 1 in there
    assert len(there) <= NEWEST + count.bit_length()
    for back in range(NEWEST, count):
        assert any(back / 4 <= count - version <= 2 * back for version in there), back


@given(st.integers(1, 300), st.frozensets(st.integers(1, 300)))
def test_numbers_that_were_never_given_leave_no_hole_in_what_is_bounded(
    count: int, gaps: frozenset[int]
) -> None:
    there = published(count, gaps)
    given_out = [v for v in range(1, count + 1) if v not in gaps]
    assert set(given_out[-NEWEST:]) <= there <= set(given_out)
    assert len(there) <= NEWEST + OLDER


def test_no_more_than_asked_for_are_kept() -> None:
    assert kept(range(1, 1000), 2, 0) == {998, 999}
    assert len(kept(range(1, 1000), 2, 3)) == 5
    assert kept([], 3, 3) == set()
    assert kept([7], 3, 3) == {7}
