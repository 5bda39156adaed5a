"""Processes that are started without the launcher: they serve, end with the block, or say why."""

import sys

import psutil
import pytest

from user_system.cluster.bench import started
from user_system.cluster.bench.started import Started
from user_system.core.errors import LinkError

SERVES = (
    "import os, pathlib, time; pathlib.Path(os.environ['USER_SYSTEM_READY']).touch(); "
    "print(os.environ['SAY'], flush=True); time.sleep(600)"
)


def program(text):
    return [sys.executable, "-c", text]


def test_it_serves_when_it_says_so_and_ends_with_the_block(tmp_path):
    with Started(tmp_path) as processes:
        one = processes.start("one", program(SERVES), env={"SAY": "hello"})
        assert (tmp_path / "one.ready").exists()
        assert one.poll() is None
        assert processes.cpu_s() > 0.0
    assert not psutil.pid_exists(one.pid)
    assert one.returncode is not None


def test_one_that_is_not_ours_is_not_waited_for(tmp_path):
    with Started(tmp_path) as processes:
        other = processes.start("other", program("import time; time.sleep(600)"), waits=False)
        assert other.poll() is None
    assert other.returncode is not None


def test_the_ready_file_of_an_earlier_one_says_nothing(tmp_path):
    (tmp_path / "one.ready").touch()
    with (
        Started(tmp_path) as processes,
        pytest.raises(LinkError, match=r"the one process ended; got bye"),
    ):
        processes.start("one", program("print('bye')"))


def test_one_that_never_serves_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(started, "UP_S", 0.1)
    with (
        Started(tmp_path) as processes,
        pytest.raises(LinkError, match=r"the slow process does not serve.*slow\.log"),
    ):
        processes.start("slow", program("import time; time.sleep(600)"))
