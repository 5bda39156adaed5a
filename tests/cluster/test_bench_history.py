"""The history checker finds every loss, repeat and swap that is put into a sound history."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from user_system.cluster.bench.history import Entry, check

ARM = ("arm-1", 1)


def make(lengths: list[list[int]], source=ARM) -> list[Entry]:
    """One list per episode: the steps of its fragments."""
    entries, sequence = [], 0
    for number, episode in enumerate(lengths):
        start = 0
        for steps in episode:
            entries.append(Entry(*source, sequence, f"e{source[1]}-{number}", start, steps))
            sequence, start = sequence + 1, start + steps
    return entries


def counts(entries: list[Entry]) -> dict:
    return {entry.source: entry.sequence + 1 for entry in sorted(entries, key=lambda e: e.sequence)}


episodes = st.lists(
    st.lists(st.integers(1, 4), min_size=1, max_size=6), min_size=1, max_size=6
).filter(lambda lists: sum(map(len, lists)) >= 3)


@given(episodes, episodes, st.randoms(use_true_random=False))
def test_a_sound_history_is_sound(one, two, random):
    """However the fragments of several sources are mixed."""
    queues = [make(one), make(two, ("arm-2", 1)), make(two, ("arm-1", 2))]
    log = []
    while any(queues):
        queue = random.choice([queue for queue in queues if queue])
        log.append(queue.pop(0))
    verdict = check(log, counts(log), counts(log), {})
    assert (verdict.total, verdict.faults) == (0, [])
    assert verdict.checked == sum(map(sum, one)) + 2 * sum(map(sum, two))


@given(episodes, st.data())
def test_a_missing_fragment_is_a_loss(lengths, data):
    whole = make(lengths)
    gone = data.draw(st.integers(0, len(whole) - 1))
    log = whole[:gone] + whole[gone + 1 :]
    verdict = check(log, counts(whole), {}, {})
    assert verdict.lost >= 1
    assert verdict.doubled == verdict.disordered == 0


@given(episodes, st.data())
def test_the_end_that_was_acknowledged_must_be_there(lengths, data):
    whole = make(lengths)
    kept = data.draw(st.integers(0, len(whole) - 1))
    assert check(whole[:kept], {}, counts(whole), {}).lost >= len(whole) - kept


@given(episodes, st.data())
def test_what_waits_in_the_spool_is_not_lost_unless_it_was_acknowledged(lengths, data):
    whole = make(lengths)
    kept = data.draw(st.integers(0, len(whole) - 1))
    waiting = {ARM: set(range(kept, len(whole)))}
    assert check(whole[:kept], counts(whole), {ARM: kept}, waiting).total == 0
    assert check(whole[:kept], counts(whole), {ARM: kept + 1}, waiting).lost >= 1


@given(episodes, st.data())
def test_a_fragment_that_is_there_twice_is_doubled(lengths, data):
    whole = make(lengths)
    again = data.draw(st.sampled_from(whole))
    where = data.draw(st.integers(whole.index(again) + 1, len(whole)))
    log = [*whole[:where], again, *whole[where:]]
    verdict = check(log, counts(whole), counts(whole), {})
    assert (verdict.doubled, verdict.lost, verdict.disordered) == (again.steps, 0, 0)


@given(episodes, st.data())
def test_two_that_changed_places_are_out_of_order(lengths, data):
    log = make(lengths)
    first = data.draw(st.integers(0, len(log) - 2))
    log[first], log[first + 1] = log[first + 1], log[first]
    verdict = check(log, counts(make(lengths)), {}, {})
    assert verdict.disordered == log[first + 1].steps
    assert verdict.lost == verdict.doubled == 0


@pytest.mark.parametrize(("shift", "kind"), [(1, "lost"), (-1, "doubled")])
def test_fragments_of_an_episode_must_join(shift, kind):
    """Numbers without a gap do not excuse steps that are missing or told twice."""
    log = make([[3, 3, 3], [2]])
    log[1:3] = [replace(entry, start=entry.start + shift) for entry in log[1:3]]
    verdict = check(log, counts(log), counts(log), {})
    assert getattr(verdict, kind) == verdict.total == 1


@pytest.mark.parametrize("first", [0, 3])
def test_an_episode_begins_at_its_beginning(first):
    log = make([[2, 1], [3, 2]]) if first == 0 else make([[1, 1, 1], [3, 2]])
    broken = 0 if first == 0 else 3
    episode = log[broken].episode
    log = [replace(e, start=e.start + 2) if e.episode == episode else e for e in log]
    assert check(log, counts(log), {}, {}).lost == 2


def test_a_loss_in_the_middle_of_an_episode_is_counted_in_steps():
    log = make([[4, 4, 4]])
    del log[1]
    verdict = check(log, {}, {}, {})
    assert verdict.lost == 4
    assert "fragments 1..1 of arm-1 epoch 1 are missing" in verdict.faults[0]
