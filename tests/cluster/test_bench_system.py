"""A run as a benchmark sees it: what fails to start is said, and nothing is left."""

import subprocess
import sys
import time

import psutil
import pytest

from user_system.cluster import census
from user_system.cluster.bench.memory import PeakMemory
from user_system.cluster.bench.system import System
from user_system.core.errors import LinkError

pytestmark = pytest.mark.system


def test_a_run_that_does_not_start_is_told_with_its_own_words(tmp_path):
    system = System(tmp_path / "no.yaml", tmp_path / "run")
    with system, pytest.raises(LinkError, match="status 2") as caught:
        system.wait_up()
    assert "no.yaml" in str(caught.value)
    assert system.ended == 2
    assert system.processes() == []


class Played(System):
    """A run whose command starts two marked processes and waits."""

    SCRIPT = """
import json, os, subprocess, sys, time
run, mark = sys.argv[1:]
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         env={**os.environ, "USER_SYSTEM_RUN": mark}, start_new_session=True)
from pathlib import Path
from user_system.cluster import census
Path(run).mkdir(parents=True)
census.Record(mark, os.getpid(), census.created(), {"hub": child.pid}).write(Path(run))
time.sleep(600)
"""

    def __init__(self, run):
        super().__init__(run / "unused.yaml", run / "run")
        self._argv = [sys.executable, "-c", self.SCRIPT, str(self.run), f"{self.run}:played"]


def test_what_a_run_started_ends_with_the_block(tmp_path):
    with Played(tmp_path) as system, PeakMemory(system, every_s=0.05) as memory:
        deadline = time.monotonic() + 60
        while memory.samples < 3 or len(system.processes()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        started = system.processes()
    assert memory.bytes > 2**20
    assert not census.members(f"{system.run}:played")
    assert all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in started)


def test_others_are_left_alone(tmp_path):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with Played(tmp_path) as system:
            deadline = time.monotonic() + 60
            while not system.processes():
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
