import os
import signal
import sys

import pytest

from user_system.edge.rings import Duplex
from user_system.edge.supervisor import ChildConfig, Supervisor, last_line, listener

pytestmark = pytest.mark.system

SLEEPER = (sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(600)")


@pytest.fixture
def make(tmp_path):
    made = []

    def build(argv, socket=None):
        deaths = []
        config = ChildConfig("child", argv, tmp_path / "log", socket)
        one = Supervisor([config], lambda name, last: deaths.append((name, last)))
        one.deaths = deaths
        made.append(one)
        return one

    yield build
    for one in made:
        one.close()


def test_a_dead_child_is_started_again(make, wait_for):
    one = make(SLEEPER)
    one.start()
    pid = one.pid("child")
    wait_for(lambda: last_line(one._children["child"].config.log) == "ready", "its output")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: one.pid("child") not in {0, pid}, "another life")
    assert one.deaths == [("child", "ready")]
    assert one.stats() == {"restarts_child": 1.0}


def test_what_it_said_last_is_passed_on(make, wait_for):
    one = make((sys.executable, "-c", "raise SystemExit('no such plugin')"))
    one.start()
    wait_for(lambda: one.deaths, "a death")
    assert one.deaths[0] == ("child", "no such plugin")


def test_a_child_that_hangs_is_killed(make, wait_for):
    one = make(SLEEPER)
    one.start()
    pid = one.pid("child")
    one.kill("child")
    wait_for(lambda: one.pid("child") not in {0, pid}, "another life")


def test_closing_ends_stubborn_children(make):
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
    one = make((sys.executable, "-c", stubborn))
    one.start()
    pid = one.pid("child")
    one.close(patience_s=0.3)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_living_listener_is_taken_over(make, tmp_path, wait_for):
    code = (
        "import sys, time; from pathlib import Path; from user_system.edge.rings import Duplex\n"
        "d = Duplex(Path(sys.argv[1]), 'listen'); d.open()\n"
        "while True: d.receive(1.0)"
    )
    argv = (sys.executable, "-c", code, str(tmp_path / "s"))
    first = make(argv, tmp_path / "s")
    first.start()
    pid = first.pid("child")
    wait_for(lambda: listener(tmp_path / "s") == pid, "its socket")
    second = make(argv, tmp_path / "s")
    second.start()
    assert second.pid("child") == pid
    second.close()
    assert listener(tmp_path / "s") == 0


def test_nobody_listens(tmp_path):
    assert listener(tmp_path / "absent") == 0
    own = Duplex(tmp_path / "s", "listen")
    own.open()
    assert listener(tmp_path / "s") == os.getpid()
    own.close()
