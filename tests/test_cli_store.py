"""The commands that keep a store in order, typed as people type them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from user_system.codec import fragments as codec
from user_system.replay.queue import Queue
from user_system.replay.store import Store

from .episodes import fragment


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed store of 20 episodes of one robot."""
    with Store(tmp_path / "replay").open(create=True) as store:
        store.append([fragment("arm", k) for k in range(20)])
    return tmp_path / "replay"


def replay(*words: object, status: int = 0) -> str:
    """Run a command, expect its status, return what it printed."""
    command = [sys.executable, "-m", "user_system.cli", "replay", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + (done.stderr if status else "")


@pytest.mark.slow
def test_a_life_of_a_store(path: Path, tmp_path: Path) -> None:
    text = replay("stats", path)
    assert "60 steps of 20 episodes in 20 records" in text
    assert "robot: arm 60" in text
    assert "arm-7" in replay("stats", path, "--episodes")
    assert json.loads(replay("stats", path, "--json"))["steps"]["segment"] == {"AUTO": 60}
    assert "20 records and 80 images" in replay("verify", path)
    replay("backup", path, tmp_path / "backup")
    assert "1 fragments of arm-7 removed" in replay("delete", path, "arm-7", "--why", "a face")
    assert "57 steps" in replay("stats", path)
    assert "19 records" in replay("compact", path)
    with Store(tmp_path / "other").open(create=True) as store:
        store.append([fragment("leg", k) for k in range(5)])
    assert "24 records" in replay("merge", tmp_path / "all", path, tmp_path / "other")
    assert "there already" in replay("restore", tmp_path / "backup", path, status=1)
    replay("restore", tmp_path / "backup", tmp_path / "again")
    assert "60 steps" in replay("stats", tmp_path / "again")


@pytest.mark.slow
def test_a_damaged_store_is_named_salvaged_and_kept(path: Path, tmp_path: Path) -> None:
    data = bytearray((path / "data.mdb").read_bytes())
    picture = fragment("arm", 3).observation["cam"][1].tobytes()
    data[data.find(picture) + 9] ^= 2
    (path / "data.mdb").write_bytes(data)
    assert "1 damaged" in replay("verify", path, status=1)
    with (path / "data.mdb").open("r+b") as file:
        file.write(bytes(8192))
    said = replay("stats", path, status=1)
    assert f"user-system replay salvage {path}" in said
    text = replay("salvage", path)
    assert "20 records with 60 steps, 79 images" in text
    assert "0 records, 1 images" in text
    assert "60 steps" in replay("stats", path)
    assert len(list(tmp_path.glob("replay.corrupt-*"))) == 1


@pytest.mark.slow
def test_what_is_stuck_on_a_robot_host_is_shown_and_taken_out(path: Path, tmp_path: Path) -> None:
    host = tmp_path / "edge" / "host-1"
    with Queue(host / "spool").open(create=True) as queue:
        for k in range(4):
            queue.append("arm", 1, k, codec.encode(fragment("arm", k)), boot="another")
    assert "arm       1      another  4" in replay("spool", host)
    assert "1 waits in the spool" in replay(
        *("adopt", host, tmp_path / "new", "--producer", "arm-b", "--create"), status=1
    )
    assert not (tmp_path / "new").exists(), "nothing is stuck, so nothing is made for it"
    said = replay("spool", host, "--store", path)
    assert "STUCK: " in said
    assert f"`user-system replay adopt {host} STORE --producer NEW`" in said
    assert json.loads(replay("spool", host, "--json"))["waiting"][0]["fragments"] == 4
    with Store(path).open():
        words = ("adopt", host, path, "--producer", "arm-b")
        assert "another process writes" in replay(*words, status=1)
    assert "4 fragments with 12 steps came in as arm-b" in replay(*words)
    assert "0 fragments wait" in replay("spool", host)
    assert "robot: arm 60, arm-b 12" in replay("stats", path)
    assert "is no spool" in replay("spool", path, status=1)


def test_commands_say_what_is_wrong(path: Path, tmp_path: Path) -> None:
    assert "there is no store in" in replay("stats", tmp_path / "nothing", status=1)
    with Store(path).open():
        assert "another process writes" in replay("delete", path, "arm-1", "--why", "no", status=1)
