"""kill -9 of the writer, again and again: what was acked is there, once, in order."""

import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from user_system.core.interfaces import Draw
from user_system.core.types import End
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store

WRITER = """
    import sys
    sys.path.insert(0, sys.argv[2])
    from conftest import Recorder
    from user_system.core.types import End
    from user_system.replay.store import Store

    store = Store(sys.argv[1]).open()
    sources = []
    for number, name in enumerate(("a", "b", "c")):
        # Numbers of a's observations begin at 0, of b's at a million, of c's at two millions.
        robot = Recorder([number * 1_000_000], name, cameras={"cam": (16, 16, 3)})
        sources.append(robot)
    # Make again what is stored already, as a host does that lost its acks: from the very start.
    while True:
        batch = []
        for robot in sources:
            k = robot.sequence
            robot.step(3, end=End.NONE)
            if k % 5 == 4:
                robot.step(1, end=End.TERMINATED)
            batch.append(robot.flush())
        assert store.append(batch) == []
        print(batch[0].header.sequence + 1, flush=True)
"""


@pytest.mark.system
def test_acked_fragments_survive_kill_9_once_and_in_order(quick_path):
    path, rng = quick_path / "replay", random.Random(3)
    Store(path).open(create=True).close()
    acked = 0
    for _ in range(15):
        command = [sys.executable, "-c", textwrap.dedent(WRITER), path, Path(__file__).parent]
        child = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True)
        # Past what was acked before, so that each life adds something, then at any moment.
        for _ in range(acked + rng.randrange(1, 12)):
            assert child.stdout.readline()
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read().split()
        child.wait()
        child.stdout.close()
        with Store(path).open() as store:
            known = store.expected("a", 1)
            assert known >= acked
            assert not rest or known >= int(rest[-1])
            acked = known
    with Store(path).open() as store:
        for name in "abc":
            assert store.expected(name, 1) == acked
        data = ReplayData(store.env)
        batch = data.consume(Draw(data.count(), columns=["robot", "k", "episode"]))
        names = data.names()
    for number, name in enumerate("abc"):
        rows = [i for i, code in enumerate(batch.extras["robot"]) if names[code] == name]
        expected = list(model(number * 1_000_000, acked))
        got = [
            (int(batch.observation["flag"][i]), int(batch.next_observation["flag"][i]))
            for i in rows
        ]
        assert got == expected


def model(counter, fragments):
    """Yield (observation, next observation) of every step that has both."""
    steps = []
    for sequence in range(fragments):
        final = sequence % 5 == 4
        for _ in range(4 if final else 3):
            counter += 1
            steps.append([counter, counter + 1])
        if final:
            counter += 1
    # Steps of an episode follow each other without a break in the numbers, so each successor is
    # one more; only the very last step, of an episode that goes on, has none yet.
    if fragments % 5:
        steps.pop()
    yield from map(tuple, steps)


def test_the_model_knows_where_episodes_end():
    assert list(model(0, 1)) == [(1, 2), (2, 3)]
    assert list(model(0, 6))[14:17] == [(15, 16), (16, 17), (18, 19)]
    assert End.NONE == 0
