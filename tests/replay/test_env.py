"""The door to LMDB: growth, full disks, forks, readers in other processes, readers that died."""

import os
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from user_system.core.errors import StoreError
from user_system.core.interfaces import Draw
from user_system.replay import env as env_module
from user_system.replay import layout
from user_system.replay.env import Env
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store, reader


def start(code: str, *arguments: object) -> subprocess.Popen:
    """Start Python on ``code`` with piped lines."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def stop(child: subprocess.Popen) -> None:
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()


def test_work_is_done_again_from_the_start_where_the_map_must_grow(tmp_path, monkeypatch):
    monkeypatch.setattr(env_module, "INITIAL_MAP", 128 << 10)
    calls = []
    with Env(tmp_path / "env", "test", ["t"]).open(create=True) as env:

        def work(txn):
            calls.append(txn.get(b"0", db=env.table("t")))
            for k in range(100):
                txn.put(b"%d" % k, bytes(10_000), db=env.table("t"))

        env.write(work)
        assert len(calls) > 1
        assert set(calls) == {None}
        with env.read() as txn:
            assert len(txn.get(b"99", db=env.table("t"))) == 10_000


def test_a_failed_creation_leaves_no_store_and_does_not_block_the_next(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr(env_module.layout, "write_manifest", fail)
    with pytest.raises(StoreError, match=r"cannot open .*env; got no space"):
        Env(tmp_path / "env", "test", ["t"]).open(create=True)
    assert not (tmp_path / "env").exists()
    monkeypatch.undo()
    Env(tmp_path / "env", "test", ["t"]).open(create=True).close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["env", "env.made"]


def test_what_was_made_once_and_is_gone_is_not_begun_anew_in_silence(tmp_path):
    """A process that is restarted with ``create`` must not hide that the data went away."""
    path = tmp_path / "env"
    Env(path, "test", ["t"]).open(create=True).close()
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is gone"):
        Env(path, "test", ["t"]).open(create=True)
    assert not path.exists()
    (tmp_path / "elsewhere").rename(path)
    Env(path, "test", ["t"]).open(create=True).close()
    path.rename(tmp_path / "elsewhere")
    (tmp_path / "env.made").unlink()
    Env(path, "test", ["t"]).open(create=True).close()


def test_a_reader_cannot_write_nor_create(tmp_path):
    with pytest.raises(StoreError, match="no store in"):
        reader(tmp_path / "replay").open()
    Store(tmp_path / "replay").open(create=True).close()
    with reader(tmp_path / "replay").open() as env, pytest.raises(StoreError, match="cannot write"):
        env.write(lambda txn: txn.put(b"k", b"v", db=env.table("log")))


def test_use_after_close_and_before_open_is_an_error(tmp_path):
    store = Store(tmp_path / "replay")
    with pytest.raises(StoreError, match="is not open"):
        store.expected("arm", 1)
    store.open(create=True).close()
    with pytest.raises(StoreError, match="is not open"):
        store.expected("arm", 1)


def test_an_io_error_stops_the_writer_for_good(tmp_path, monkeypatch):
    import lmdb

    with Env(tmp_path / "env", "test", ["t"]).open(create=True) as env:

        def fail(txn):
            raise lmdb.Error("mdb_txn_commit: Input/output error")

        with pytest.raises(StoreError, match="Input/output error"):
            env.write(fail)
        # After a failed fsync the next one may lie, so there is no next one.
        with pytest.raises(StoreError, match="stopped after a write error"):
            env.write(lambda txn: None)


def test_a_value_that_is_none_is_no_failed_disk(tmp_path):
    """A block above 4 GiB is refused by LMDB before it writes; others can be written still."""
    with Env(tmp_path / "env", "test", ["t"]).open(create=True) as env:
        with pytest.raises(StoreError, match=r"BAD_VALSIZE.*allowed"):
            env.write(lambda txn: txn.put(bytes(600), b"", db=env.table("t")))
        env.write(lambda txn: txn.put(b"k", b"v", db=env.table("t")))


@pytest.mark.system
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_use_across_fork_is_refused(tmp_path):
    with Store(tmp_path / "replay").open(create=True) as store:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                store.expected("arm", 1)
            except StoreError as error:
                code = 0 if "opened before a fork" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert store.expected("arm", 1) == 0


READER = """
    import sys
    from user_system.core.interfaces import Draw
    from user_system.replay.sampler import ReplayData
    from user_system.replay.store import reader
    data = ReplayData(reader(sys.argv[1]).open(), seed=1)
    print("ready", flush=True)
    for line in sys.stdin:
        wanted = int(line)
        while data.count() < wanted:
            pass
        for _ in range(20):
            batch = data.draw(Draw(64))
            now, then = batch.observation, batch.next_observation
            assert (then["flag"] == now["flag"] + 1).all()
            assert (now["o"][:, 0] == now["flag"]).all()
        print(data.count(), flush=True)
"""


def test_a_reader_that_sees_a_commit_announced_but_not_yet_in_its_snapshot_looks_again(
    store, data, recorder, monkeypatch
):
    """LMDB writes the meta page, then the number that new snapshots go by."""
    announced = store.env.transaction() + 1
    monkeypatch.setattr(store.env, "transaction", lambda: announced)
    assert data.count() == 0
    store.append(recorder().run_episode(4))
    assert data.count() == 4


@pytest.mark.system
def test_readers_of_other_processes_follow_while_the_file_grows(tmp_path, recorder, monkeypatch):
    monkeypatch.setattr(env_module, "INITIAL_MAP", 1 << 20)
    robot = recorder(cameras={"cam": (48, 48, 3)})
    with Store(tmp_path / "replay").open(create=True) as store:
        readers = [start(READER, tmp_path / "replay") for _ in range(2)]
        try:
            assert [r.stdout.readline() for r in readers] == ["ready\n"] * 2
            for n in range(1, 7):
                for child in readers:
                    child.stdin.write(f"{n * 40}\n")
                    child.stdin.flush()
                store.append(robot.run_episode(40))
                assert [int(r.stdout.readline()) for r in readers] == [n * 40] * 2
            assert store.stats()["map_grown"] >= 1
        finally:
            for child in readers:
                stop(child)


PINNER = """
    import sys
    from user_system.replay.env import Env
    env = Env(sys.argv[1], "replay", ["log"], readonly=True).open()
    with env.read() as txn:
        print("pinned", flush=True)
        sys.stdin.readline()
"""


@pytest.mark.system
def test_the_slot_of_a_killed_reader_is_cleared(tmp_path, monkeypatch):
    monkeypatch.setattr(env_module, "READER_CHECK_S", 0.0)
    with Env(tmp_path / "replay", "replay", ["log"]).open(create=True) as env:

        def churn():
            def work(txn):
                for k in range(8):
                    txn.put(b"%d" % k, os.urandom(40_000), db=env.table("log"))

            for _ in range(20):
                env.write(work)
            return env.stats()["pages"]

        settled = churn()
        child = start(PINNER, tmp_path / "replay")
        assert child.stdout.readline() == "pinned\n"
        pinned = churn()
        os.kill(child.pid, signal.SIGKILL)
        stop(child)
        assert pinned > settled
        # Once the dead reader's slot is cleared its pages are used again instead of new ones.
        assert churn() < pinned + (pinned - settled) / 2


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 3 MiB; skipped where this user may not mount one."""
    place = tmp_path / "tiny"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"may not mount a tmpfs: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.system
def test_a_full_disk_is_an_error_and_writing_goes_on_once_there_is_space(tiny_disk, recorder):
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    robot = recorder(cameras={"cam": (64, 64, 3)})
    acked = []
    with Store(tiny_disk / "replay").open(create=True) as store:
        data = ReplayData(store.env, seed=1)
        fragments = robot.run_episode(400)

        def fill():
            for fragment in fragments:
                store.append([fragment])
                acked.append(fragment)

        with pytest.raises(StoreError, match=r"the disk under .* is full") as caught:
            fill()
        assert "Free some space" in str(caught.value)
        assert store.expected("arm", 1) == len(acked)
        assert len(data.draw(Draw(32))) == 32
        ballast.unlink()
        following = fragments[len(acked) : len(acked) + 4]
        assert store.append(following) == []
        acked += following
        steps = 4 * len(acked) - 1
        assert data.count() == steps
        flags = data.consume(Draw(steps)).observation["flag"]
        assert (flags == np.arange(1, steps + 1)).all()


def test_asking_whether_there_is_a_writer_stops_no_writer(tmp_path):
    """A reader looks at the lock whenever it opens; the replay must start all the same."""
    path = tmp_path / "replay"
    Store(path).open(create=True).close()
    over = threading.Event()

    def ask():
        while not over.is_set():
            layout.is_written(path)

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        for _ in range(20):
            with Store(path).open():
                assert layout.is_written(path)
        assert not (path / "nothing").exists()
    finally:
        over.set()
        for asker in askers:
            asker.join()
    assert not layout.is_written(path)
    assert not layout.is_written(tmp_path / "nothing")
