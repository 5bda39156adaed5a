"""What a transaction stores is entered at once, and comes to the same as one by one."""

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st

from user_system.core.types import End, Segment
from user_system.replay.store import Store

from .conftest import Recorder

ACTIONS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["go on", "end", "abandon"]),
        st.sampled_from([Segment.AUTO, Segment.DEMO, Segment.CORRECTION]),
    ),
    min_size=1,
    max_size=12,
)


def lives(actions):
    """Return fragments of three robots, mixed as ``actions`` say."""
    counter = [0]
    robots = [Recorder(counter, f"arm-{i}") for i in range(3)]
    fragments = []
    for who, what, segment in actions:
        robot = robots[who]
        if what == "abandon":  # the next episode begins though this one has no end
            robot.episode = ""
        robot.step(2, segment=segment)
        if what == "end":
            robot.pending[-1] = dataclasses.replace(robot.pending[-1], end=End.TERMINATED)
        fragments.append(robot.flush())
    return fragments


def books(store):
    with store.env.read() as txn:
        found = {}
        for name in ("episodes", "pieces", "order", "live"):
            cursor = txn.cursor(store.env.table(name))
            there = cursor.first()
            found[name] = []
            while there:
                found[name].append((bytes(cursor.key()), bytes(cursor.value())))
                there = cursor.next()
        return found


@settings(max_examples=25, deadline=None)
@given(actions=ACTIONS, cut=st.integers(0, 12))
def test_together_or_one_by_one(tmp_path_factory, actions, cut):
    fragments, found = lives(actions), []
    for way in ([[f] for f in fragments], [fragments[:cut], fragments[cut:]]):
        path = tmp_path_factory.mktemp("ledger") / "replay"
        with Store(path).open(create=True) as store:
            for group in way:
                assert not store.append(group)
            found.append(books(store))
    assert found[0] == found[1]


def test_time_within_an_episode_that_was_left_and_taken_up_in_one_transaction(store, recorder):
    robot = recorder()
    robot.step(2)
    first = robot.flush()
    robot.episode = ""
    robot.step(1)
    other = robot.flush()
    again = dataclasses.replace(
        first, header=dataclasses.replace(first.header, sequence=2, start=2)
    )
    (refused,) = store.append([first, other, again])
    assert refused.sequence == 2
    assert "robot_ns runs backwards" in refused.reason
