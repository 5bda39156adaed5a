"""What is stuck on a robot host gets out: into a store, under a new name, exactly once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from user_system.cluster import spools
from user_system.cluster.layout import JOURNALS, QUEUE
from user_system.cluster.spools import Choice
from user_system.codec import fragments as codec
from user_system.core.draws import Draw
from user_system.core.errors import ConfigError, SpecError, StoreError
from user_system.core.types import End, Fragment, FragmentHeader, Purpose, Segment
from user_system.edge.spool import Spool
from user_system.replay import adopting, layout, tables
from user_system.replay.env import Env
from user_system.replay.queue import Queue
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store, reader

EPOCH = 1_760_000_000
WHY = "the replay has fragments of that name from another process"


def fragment(
    sequence: int, producer: str = "arm-1", epoch: int = EPOCH, boot: str = "two", wide: int = 2
) -> Fragment:
    """Return two steps with an image each; five fragments make an episode."""
    t, final = 2, sequence % 5 == 4
    rows, rng = t + final, np.random.default_rng(sequence)
    header = FragmentHeader(
        *(producer, epoch, sequence, "run", "pick", f"{boot}-{sequence // 5}"),
        *(sequence % 5 * t, Purpose.TRAIN, "s", producer, "e", boot, time.time_ns(), 1),
    )
    return Fragment(
        header=header,
        observation={
            "q": rng.random((rows, wide)).astype(np.float32),
            "cam": rng.integers(0, 256, (rows, 8, 8, 3), np.uint8),
        },
        executed=rng.random((t, 2)).astype(np.float32),
        proposed=np.full((t, 2), np.nan, np.float32),
        reward=np.zeros(t, np.float32),
        segment=np.full(t, Segment.AUTO, np.uint8),
        end=np.array([0, End.TERMINATED if final else 0], np.uint8),
        robot_ns=np.arange(rows, dtype=np.int64) + sequence % 5 * t,
        policy=np.zeros(t, np.uint16),
        version=np.zeros(t, np.int64),
        operator=np.zeros(t, np.uint16),
        chunk=np.zeros(t, np.int32),
        position=np.zeros(t, np.int32),
    )


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A robot host at rest: ten fragments of ``arm-1`` are stuck, three of ``arm-2`` are not."""
    place = tmp_path / "host-1"
    (place / JOURNALS).mkdir(parents=True)
    with Queue(place / QUEUE).open(create=True) as queue:
        put(queue, *map(fragment, range(10)))
        queue.note_stuck("arm-1", EPOCH, WHY)
        put(queue, *(fragment(k, "arm-2") for k in range(3)))
    return place


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """A store at rest that has four fragments of another robot of that name."""
    with Store(tmp_path / "replay").open(create=True) as store:
        assert not store.append([fragment(k, boot="one") for k in range(4)])
    return tmp_path / "replay"


def put(queue: Queue, *made: Fragment) -> None:
    for one in made:
        header = one.header
        source = header.producer, header.epoch
        queue.append(*source, header.sequence, codec.encode(one), boot=header.boot)


def stored(path: Path) -> list[FragmentHeader]:
    with reader(path).open() as env, env.read() as txn:
        values = [bytes(value) for _, value in tables.entries(txn, env, "log", 0)]
    return [codec.decode(value).header for value in values]


def check(head: Path, host: Path, count: int = 10, missing: frozenset[int] = frozenset()) -> None:
    """Everything that was stuck is in the store once, in order, and nowhere else."""
    headers = [header for header in stored(head) if header.producer == "arm-9"]
    assert [h.sequence for h in headers] == [k for k in range(count) if k not in missing]
    assert {(h.robot, h.epoch, h.boot) for h in headers} == {("arm-9", EPOCH, "two/arm-1")}
    with Queue(host / QUEUE).open() as queue:
        assert queue.sources() == [("arm-2", EPOCH)]
        assert {item.sequence for item in queue.aside()} == missing
    with Store(head).open() as store:
        assert store.expected("arm-9", EPOCH) == count
        assert store.strange("arm-9", EPOCH, "two"), "a robot of that name is another source"


def test_what_waits_is_listed_with_why_it_is_stuck(host: Path, head: Path) -> None:
    with Queue(host / QUEUE).open() as queue:
        queue.set_aside("arm-1", EPOCH, 3, "wrong shape")
    with layout.writer_lock(host / QUEUE):  # an agent has it
        found, journals = spools.look(host)
    assert journals == {}
    assert found.in_use
    assert found.aside == {"wrong shape": 1}
    one, two = sorted(found.waiting, key=lambda source: source.producer)
    assert (one.producer, one.epoch, one.boot, one.fragments, one.stuck) == (
        *("arm-1", EPOCH, "two"),
        *(9, WHY),
    )
    assert one.bytes > 9 * 2 * 8 * 8 * 3
    assert (two.fragments, two.stuck) == (3, "")
    assert 0 <= time.time_ns() - one.newest_ns <= time.time_ns() - one.oldest_ns < 3600 * 10**9
    assert [source.producer for source in found.stuck] == ["arm-1"]
    assert spools.look(host / QUEUE)[0].waiting == found.waiting
    assert not spools.look(host)[0].in_use


def test_a_store_says_what_is_a_stranger_to_it(host: Path, head: Path) -> None:
    with Queue(host / QUEUE).open() as queue:
        queue.note_stuck("arm-1", EPOCH, "")  # its head was never reached
    assert spools.look(host)[0].stuck == []
    (stuck,) = spools.look(host, head)[0].stuck
    assert "from another process" in stuck.stuck
    assert spools.adopt(host, head, "arm-9").done.fragments == 10
    check(head, host)


def test_what_is_stuck_comes_in_under_a_new_name_once(host: Path, head: Path) -> None:
    moved = spools.adopt(host, head, "arm-9")
    assert (moved.done.fragments, moved.done.steps, moved.done.repeated) == (10, 20, 0)
    assert (moved.aside, moved.left) == (0, (("arm-2", EPOCH),))
    check(head, host)
    again = spools.adopt(host, head, "arm-9")
    assert again.done.fragments == again.done.repeated == 0
    check(head, host)
    headers = stored(head)
    assert [h.sequence for h in headers if h.producer == "arm-1"] == [0, 1, 2, 3]


def test_rows_and_pixels_are_what_was_recorded(host: Path, tmp_path: Path) -> None:
    target = tmp_path / "new"
    with pytest.raises(StoreError, match="there is no store in"):
        spools.adopt(host, target, "arm-9")
    assert spools.adopt(host, target, "arm-9", create=True).done.fragments == 10
    with reader(target).open() as env:
        data = ReplayData(env)
        batch = data.consume(Draw(data.count(), columns=("robot",)))
        assert {data.names()[code] for code in batch.extras["robot"]} == {"arm-9"}
        for k in range(10):
            rows = slice(2 * k, 2 * k + 2)
            made = fragment(k)
            assert (batch.observation["q"][rows] == made.observation["q"][:2]).all()
            assert (batch.observation["cam"][rows] == made.observation["cam"][:2]).all()
            assert (batch.action[rows] == made.executed).all()


def test_neither_may_be_in_use(host: Path, head: Path) -> None:
    with layout.writer_lock(host / QUEUE), pytest.raises(StoreError, match="an agent has"):
        spools.adopt(host, head, "arm-9")
    with layout.writer_lock(head), pytest.raises(StoreError, match="another process writes to"):
        spools.adopt(host, head, "arm-9")
    assert len(stored(head)) == 4
    assert spools.look(host)[0].stuck[0].fragments == 10


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 40, "9"])
def test_a_name_that_no_robot_may_have_is_refused_first(host: Path, head: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="not a name of a robot"):
        spools.adopt(host, head, name)
    assert spools.look(host)[0].stuck[0].fragments == 10


def test_a_name_that_somebody_has_is_refused(host: Path, head: Path) -> None:
    """The same agent recorded both robots: boot and epoch are the same, the fragments are not."""
    with Store(head).open() as store:
        store.append([fragment(k, "arm-2") for k in range(3)])
    for name, says in (("arm-2", "from somebody else"), ("arm-1", "would keep its name")):
        with pytest.raises(SpecError, match=says):
            spools.adopt(host, head, name)
    assert spools.look(host)[0].stuck[0].fragments == 10
    assert len(stored(head)) == 7


def test_what_a_store_has_under_its_own_name_is_not_doubled(host: Path, head: Path) -> None:
    with Store(head).open() as store:
        store.append([fragment(0, "arm-2")])
    with pytest.raises(SpecError, match="no stranger to this store"):
        spools.adopt(host, head, "arm-9", Choice("arm-2", everything=True))
    assert len(stored(head)) == 5


def test_two_robots_do_not_get_one_name(host: Path, head: Path) -> None:
    everything = Choice(everything=True)
    with pytest.raises(ConfigError, match="got arm-1, arm-2"):
        spools.adopt(host, head, "arm-9", everything)
    moved = spools.adopt(host, head, "arm-8", Choice("arm-2", everything=True))
    assert (moved.done.fragments, moved.left) == (3, (("arm-1", EPOCH),))


def test_what_a_killed_agent_left_in_its_journal_comes_along(host: Path, head: Path) -> None:
    """The robot has another name by now: nobody else would ever look into that journal."""
    with Queue(host / QUEUE).open() as queue:
        spool = Spool(queue, 1 << 20)
        spool._directory = host / JOURNALS  # not started: nothing is carried, as after a kill
        spool.begin_epoch("arm-1")
        for k in (10, 11):
            spool.put(fragment(k))
    assert spools.look(host)[1]["arm-1"] > 0
    assert spools.adopt(host, head, "arm-9").done.fragments == 12
    check(head, host, 12)


@pytest.mark.parametrize("damaged", [0, 3, 9])
def test_damage_is_set_aside_and_the_rest_comes_in(
    host: Path, head: Path, damaged: int, tmp_path: Path
) -> None:
    place = tmp_path / "other"
    (place / JOURNALS).mkdir(parents=True)
    with Queue(place / QUEUE).open(create=True) as queue:
        for k in range(10):
            data = b"no fragment" if k == damaged else codec.encode(fragment(k))
            queue.append("arm-1", EPOCH, k, data, boot="two")
        put(queue, fragment(0, "arm-2"))
    moved = spools.adopt(place, head, "arm-9")
    assert (moved.done.fragments, moved.aside) == (9, 1)
    with Queue(place / QUEUE).open() as queue:
        assert [item.sequence for item in queue.aside()] == [damaged]
    assert sorted(h.sequence for h in stored(head) if h.producer == "arm-9") == [
        k for k in range(10) if k != damaged
    ]


def test_what_does_not_stack_stays_where_it_is(host: Path, tmp_path: Path) -> None:
    with Store(tmp_path / "replay").open(create=True) as store:
        store.append([fragment(0, boot="one", wide=3)])
    with pytest.raises(SpecError, match="Take it into a store of its own"):
        spools.adopt(host, tmp_path / "replay", "arm-9")
    assert spools.look(host)[0].stuck[0].fragments == 10
    assert spools.adopt(host, tmp_path / "own", "arm-9", create=True).done.fragments == 10


class Ended(BaseException):
    """Stands for a kill: nothing of ours handles it."""


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[int]]]:
    """Returns what ends the process before or after the n-th commit of either side."""
    monkeypatch.setattr(adopting, "_TOGETHER", 3)
    write = Env.write

    def arm(at: int) -> list[int]:
        count = [0]

        def counted(self: Env, work: Callable[[Any], Any]) -> Any:
            count[0] += 1
            if count[0] == 2 * at - 1:
                raise Ended
            result = write(self, work)
            count[0] += 1
            if count[0] == 2 * at:
                raise Ended
            return result

        monkeypatch.setattr(Env, "write", counted)
        return count

    yield arm
    monkeypatch.setattr(Env, "write", write)


def broken(how: str) -> bytes:
    """Return a fragment that cannot be read, or that no store takes."""
    if how == "damaged":
        return b"no fragment"
    made = fragment(4)
    made.executed[0, 0] = np.nan
    return codec.encode(made)


@pytest.mark.parametrize("how", ["", "damaged", "not finite"])
def test_whatever_ends_it_when_nothing_is_lost_or_doubled(
    tmp_path: Path, ending: Callable[[int], list[int]], how: str
) -> None:
    """Between any two commits of the store and the spool; then it is repeated."""
    ended = 0
    for at in range(1, 60):
        place = tmp_path / str(at)
        host, head = place / "host", place / "replay"
        (host / JOURNALS).mkdir(parents=True)
        ending(10**9)
        with Queue(host / QUEUE).open(create=True) as queue:
            for k in range(10):
                data = broken(how) if how and k == 4 else codec.encode(fragment(k))
                queue.append("arm-1", EPOCH, k, data, boot="two")
            put(queue, fragment(0, "arm-2"))
            queue.note_stuck("arm-1", EPOCH, WHY)
        with Store(head).open(create=True) as store:
            store.append([fragment(k, boot="one") for k in range(4)])
        ending(at)
        try:
            spools.adopt(host, head, "arm-9")
        except Ended:
            ended += 1
            ending(10**9)
            spools.adopt(host, head, "arm-9")
        else:
            break
        finally:
            ending(10**9)
        check(head, host, missing=frozenset([4] if how else []))
    assert ended > 6


KILLED = """
import os, signal, sys
from pathlib import Path
from user_system.cluster import spools
from user_system.replay import adopting
from user_system.replay.env import Env
adopting._TOGETHER, write, left = 2, Env.write, [int(sys.argv[3])]
def counted(self, work):
    result = write(self, work)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
Env.write = counted
spools.adopt(Path(sys.argv[1]), Path(sys.argv[2]), "arm-9")
"""


@pytest.mark.system
def test_it_goes_on_where_kill_9_ended_it(host: Path, head: Path) -> None:
    codes = []
    for commits in (1, 2, 3, 100):
        arguments = [sys.executable, "-c", KILLED, str(host), str(head), str(commits)]
        codes.append(subprocess.run(arguments, env={**os.environ}, check=False).returncode)
    assert codes == [-signal.SIGKILL] * 3 + [0]
    check(head, host)
