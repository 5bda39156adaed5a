"""First and last things of every process: config in, signals, one error line, exit status."""

import json
import logging
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from user_system.cluster import process

PROGRAM = """
import resource
import signal
import sys
import threading
from dataclasses import dataclass
from user_system.cluster import process
from user_system.cluster.process import run
from user_system.core import errors

@dataclass(frozen=True)
class Config:
    say: str = "hello"

def main(config, life):
    if config.say == "config":
        raise errors.ConfigError("a port is taken", got=7)
    if config.say == "link":
        raise errors.LinkError("nobody is there")
    if config.say == "defect":
        raise ZeroDivisionError("oops")
    if config.say == "files":
        print(*resource.getrlimit(resource.RLIMIT_NOFILE), flush=True)
        life.stop.set()
    if config.say == "finish":
        life.on_finish(lambda: print("finishes", flush=True))
        life.on_end(lambda: print("ends", flush=True))
    life.ready({"say": config.say})
    if config.say == "locked":
        with life.stop._cond:
            signal.raise_signal(signal.SIGTERM)
    if config.say == "hang":
        process.END_S = 0.3
        threading.Event().wait()
    life.stop.wait()
    print("ended in order")

run(main, Config)
"""


def start(tmp_path: Path, config: object, **env: str) -> subprocess.Popen[str]:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, str(program), str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env or None,
    )


@pytest.mark.parametrize(
    ("config", "status", "last"),
    [
        ({"say": "config"}, 2, "error: a port is taken; got 7"),
        ({"say": "link"}, 1, "error: nobody is there"),
        ({"say": "defect"}, 1, "error: ZeroDivisionError: oops"),
        ({"sya": "x"}, 2, "sya: unknown key; got 'sya'; allowed: say. Did you mean 'say'?"),
        ({"say": 3}, 2, "say: wrong type; got 3; allowed: text"),
    ],
)
def test_status_and_last_line(tmp_path, config, status, last) -> None:
    out, err = start(tmp_path, config).communicate(timeout=60)
    assert err.splitlines()[-1].endswith(last)
    assert out == ""
    done = start(tmp_path, config)
    done.communicate(timeout=60)
    assert done.returncode == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_that_it_serves_and_ends_in_order(tmp_path, number) -> None:
    ready = tmp_path / "ready" / "it"
    child = start(tmp_path, {"say": "hi"}, USER_SYSTEM_READY=str(ready))
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert json.loads(ready.read_text()) == {"pid": child.pid, "say": "hi"}
    child.send_signal(number)
    out, _ = child.communicate(timeout=60)
    assert (out, child.returncode) == ("ended in order\n", 0)


def test_one_is_asked_to_finish_and_decides_when_to_end(tmp_path) -> None:
    ready = tmp_path / "ready"
    child = start(tmp_path, {"say": "finish"}, USER_SYSTEM_READY=str(ready))
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert child.stdout is not None
    for _ in range(2):
        child.send_signal(signal.SIGUSR1)
        assert child.stdout.readline() == "finishes\n"
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=60)
    assert (out, child.returncode) == ("ends\nended in order\n", 0)


def test_one_that_cannot_end_says_where_it_hangs_and_is_ended(tmp_path) -> None:
    ready = tmp_path / "ready"
    child = start(tmp_path, {"say": "hang"}, USER_SYSTEM_READY=str(ready))
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "still here 0.3 s after it was asked to end" in err
    assert "program.py" in err, "the stack of the main thread"


def test_a_signal_while_the_main_thread_holds_the_lock_of_its_event(tmp_path) -> None:
    """``Event.set`` in a handler would wait for a lock that only the interrupted thread frees."""
    out, _ = start(tmp_path, {"say": "locked"}).communicate(timeout=60)
    assert out == "ended in order\n"


def test_late_listeners_hear_of_the_end_too() -> None:
    life, heard = process.Life(), []
    life.on_end(lambda: heard.append("first"))
    life.end()
    life.on_end(lambda: heard.append("second"))
    assert heard == ["first", "second"]


def test_what_was_meant_for_a_process_is_not_handed_on(monkeypatch) -> None:
    monkeypatch.setenv(process.READY_VARIABLE, "/x")
    monkeypatch.setenv(process.NICE_VARIABLE, "0")
    assert process.begin().ready_file == "/x"
    assert process.begin().ready_file == ""


def test_private_files_are_whole_and_private(tmp_path) -> None:
    path = tmp_path / "a" / "secret"
    process.write_private(path, "one")
    process.write_private(path, "two")
    assert path.read_text() == "two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_flood_of_lines_is_a_few_and_says_how_many_were_left_out() -> None:
    quiet = process.Quiet()
    written = []
    for number in range(1000):
        record = logging.LogRecord("n", 30, "f", 1, "refused %s", (f"peer-{number}",), None)
        if quiet.filter(record):
            written.append(record.getMessage())
    assert 50 <= len(written) <= 60
    other = logging.LogRecord("n", 30, "f", 1, "something else", (), None)
    assert quiet.filter(other)
    quiet._lines.forgive("n refused %s")
    late = logging.LogRecord("n", 30, "f", 1, "refused %s", ("peer-x",), None)
    assert quiet.filter(late)
    assert late.getMessage() == f"refused peer-x (and {1000 - len(written)} more of this kind)"


def test_what_a_peer_says_cannot_look_like_a_line_of_the_log() -> None:
    said = "x\n2026-01-01 00:00:00,000 I hub: all is well\x1b[2J\u202e"
    record = logging.LogRecord("hub", 30, "f", 1, "refused %s", (said,), None)
    text = process.Plain("%(levelname).1s %(message)s").format(record)
    assert "\n" not in text
    assert text.isprintable()
    assert "\\n2026-01-01" in text
    try:
        raise ValueError(said)
    except ValueError:
        record.exc_info = sys.exc_info()
    lines = process.Plain("%(message)s").format(record).splitlines()
    assert len(lines) > 2
    assert all(line.startswith("  ") and line.isprintable() for line in lines[1:])


@pytest.mark.parametrize(
    ("given", "takes"), [((256, 4096), 4096), ((256, 1 << 14), 8192), ((9000, 9000), 9000)]
)
def test_it_may_open_as_many_files_as_strangers_can_take(tmp_path, given, takes) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < given[1]:
        pytest.skip(f"this machine lets nobody open {given[1]} files")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"say": "files"}))
    (tmp_path / "program.py").write_text(PROGRAM)
    limited = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, {given}); "
    limited += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    words = [sys.executable, "-c", limited, str(tmp_path / "program.py"), str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split()[:2] == [str(takes), str(given[1])]
