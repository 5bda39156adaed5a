"""The launcher starts, restarts and ends exactly what belongs to a run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from user_system.cluster import census
from user_system.cluster.launch import START_TRIES, ProcessSpec, Supervisor
from user_system.core.errors import ConfigError, LinkError

pytestmark = pytest.mark.system

BEGIN = "import os, time; from user_system.cluster import process; life = process.begin(); "
READY = BEGIN + "life.ready(); "
SLEEP = READY + "time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP
NESTING = (
    "import subprocess, sys; "
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
    "start_new_session=True); " + SLEEP
)


def spec(name: str, code: str, **more: object) -> ProcessSpec:
    return ProcessSpec(name, (sys.executable, "-c", code), **more)  # type: ignore[arg-type]


def wait_for(condition, what: str, limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


def never() -> bool:
    return False


@pytest.fixture
def supervisor(tmp_path: Path):
    made = Supervisor(tmp_path, mark=f"test-{os.getpid()}-{tmp_path.name}")
    yield made
    made.stop(grace_s=1.0)


def marked(supervisor: Supervisor) -> list[psutil.Process]:
    return census.members(supervisor.record().mark)


def test_starts_in_order_and_ends_everything(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start([spec("one", SLEEP), spec("two", NESTING, stage=1)], never)
    wait_for(lambda: len(marked(supervisor)) == 3, "the grandchild runs")
    assert census.read_record(tmp_path).processes.keys() == {"one", "two"}  # type: ignore[union-attr]
    mark = supervisor.record().mark
    supervisor.stop(grace_s=2.0)
    assert census.members(mark) == []
    assert census.read_record(tmp_path) is None


def test_a_process_starts_once_those_before_it_serve(supervisor: Supervisor, tmp_path) -> None:
    ready = tmp_path / "ready" / "slow"
    slow = spec("slow", "import time; time.sleep(0.5); " + SLEEP)
    code = f"import os; assert os.path.exists({str(ready)!r}); " + SLEEP
    supervisor.start([spec("late", code, after=("slow",)), slow], never)
    assert supervisor.pid("late") is not None


def test_ends_only_its_own(supervisor: Supervisor, tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    neighbour = Supervisor(tmp_path / "b", mark="another-run")
    try:
        neighbour.start([spec("theirs", SLEEP)], never)
        supervisor.start([spec("ours", SLEEP)], never)
        supervisor.stop(grace_s=2.0)
        assert other.poll() is None
        assert neighbour.pid("theirs") is not None
    finally:
        neighbour.stop(grace_s=1.0)
        other.kill()
        other.wait()


def test_a_process_that_ignores_sigterm_is_killed(supervisor: Supervisor) -> None:
    supervisor.start([spec("stubborn", STUBBORN)], never)
    mark = supervisor.record().mark
    supervisor.stop(grace_s=0.2)
    assert census.members(mark) == []


def test_a_process_takes_its_priority(supervisor: Supervisor) -> None:
    supervisor.start([spec("meek", SLEEP, nice=7)], never)
    assert psutil.Process(supervisor.pid("meek")).nice() == 7


THREADED = (
    "import subprocess, sys, threading, time; threading.Thread(target=time.sleep, args=(600,), "
    "daemon=True).start(); subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']"
    ", start_new_session=True); " + SLEEP
)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one CPU")
def test_spare_cpus_are_lent_and_taken_back_from_every_thread(supervisor: Supervisor) -> None:
    own, other = sorted(os.sched_getaffinity(0))[:2]
    supervisor.start(
        [spec("robot", THREADED, cores=(own,), spare=(other,)), spec("ray", SLEEP, cores=(other,))],
        never,
    )
    wait_for(lambda: len(marked(supervisor)) == 3, "the grandchild runs")
    ray = supervisor.pid("ray")

    def used() -> set[frozenset[int]]:
        threads = [t.id for p in marked(supervisor) if p.pid != ray for t in p.threads()]
        assert len(threads) >= 3
        return {frozenset(os.sched_getaffinity(thread)) for thread in threads}

    assert used() == {frozenset((own, other))}, "nobody needs them before the first step"
    supervisor.lend(False)
    assert used() == {frozenset((own,))}
    os.kill(supervisor.pid("robot"), signal.SIGKILL)  # type: ignore[arg-type]
    wait_for(lambda: supervisor.poll() or supervisor.stats()["restarts"] == 1, "a restart")
    wait_for(lambda: supervisor.is_ready("robot"), "it serves again")
    pid = supervisor.pid("robot")
    assert os.sched_getaffinity(pid) == {own}, "its next life knows"  # type: ignore[arg-type]
    supervisor.lend(True)
    assert os.sched_getaffinity(pid) == {own, other}  # type: ignore[arg-type]
    assert os.sched_getaffinity(ray) == {other}, "a learner keeps to its own"  # type: ignore[arg-type]


def test_restarts_what_died(supervisor: Supervisor) -> None:
    supervisor.start([spec("one", SLEEP)], never)
    first = supervisor.pid("one")
    assert first is not None
    os.kill(first, signal.SIGKILL)

    def back() -> bool:
        supervisor.poll()
        return supervisor.pid("one") not in (None, first) and supervisor.is_ready("one")

    wait_for(back, "restarted")
    assert supervisor.stats()["restarts"] == 1


FINISHING = "import signal, sys; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0)); " + SLEEP


def test_a_process_that_finishes_is_not_started_again(supervisor: Supervisor) -> None:
    supervisor.start([spec("one", SLEEP), spec("two", FINISHING)], never)
    pid = supervisor.pid("one")
    supervisor.finish("two")

    def gone() -> bool:
        supervisor.poll()
        return supervisor.pid("two") is None

    wait_for(gone, "it ended by itself")
    time.sleep(0.5)
    supervisor.poll()
    assert supervisor.pid("two") is None
    supervisor.end(["two"])
    supervisor.start([spec("two", SLEEP)], never)
    assert supervisor.pid("two") is not None
    assert supervisor.pid("one") == pid
    assert supervisor.stats()["restarts"] == 0


def test_some_are_ended_and_the_rest_goes_on(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start([spec("one", SLEEP), spec("two", SLEEP, stage=1)], never)
    pid = supervisor.pid("one")
    supervisor.end(["two"])
    assert (supervisor.pid("two"), supervisor.pid("one")) == (None, pid)
    assert census.read_record(tmp_path).processes == {"one": pid}  # type: ignore[union-attr]
    supervisor.poll()
    assert len(marked(supervisor)) == 1, "it is not started again either"


def test_a_zombie_is_no_launcher(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    record = census.Record("m", gone.pid, census.created(gone.pid))
    wait_for(lambda: psutil.Process(gone.pid).status() == psutil.STATUS_ZOMBIE, "it ended")
    assert not record.launcher_alive
    gone.wait()


def test_config_error_of_a_child_is_the_launchers(supervisor: Supervisor) -> None:
    code = "import sys; print('error: port 1 is taken', file=sys.stderr); sys.exit(2)"
    with pytest.raises(ConfigError, match="two: port 1 is taken"):
        supervisor.start([spec("one", SLEEP), spec("two", code)], never)


def test_a_child_that_dies_at_start_is_tried_again_then_named(supervisor: Supervisor) -> None:
    with pytest.raises(LinkError, match=r"process bad ended with status 3.*bad\.log"):
        supervisor.start([spec("bad", "print('tried'); raise SystemExit(3)")], never)
    assert supervisor.log_file("bad").read_text().count("tried") == START_TRIES


def test_a_child_that_never_serves_is_named(supervisor: Supervisor) -> None:
    slow = spec("slow", "import time; time.sleep(600)", ready_after_s=0.3)
    with pytest.raises(LinkError, match="process slow did not get ready"):
        supervisor.start([slow], never)


def test_a_config_error_after_start_ends_the_run(supervisor: Supervisor) -> None:
    code = READY + "import sys; print('error: no space', file=sys.stderr); sys.exit(2)"
    supervisor.start([spec("late", code)], never)
    with pytest.raises(ConfigError, match="late: no space"):
        wait_for(lambda: supervisor.poll(), "noticed")  # type: ignore[func-returns-value]


def test_an_interrupt_stops_the_start(supervisor: Supervisor) -> None:
    supervisor.start(
        [spec("one", "import time; time.sleep(600)"), spec("two", SLEEP, after=("one",))],
        lambda: bool(supervisor.record().processes),
    )
    assert "two" not in supervisor.record().processes


LAUNCHER = """
import sys, time
from pathlib import Path
from user_system.cluster.launch import ProcessSpec, Supervisor
code = sys.argv[2]
made = Supervisor(Path(sys.argv[1]), mark="killed-" + sys.argv[1])
made.start([ProcessSpec("one", (sys.executable, "-c", code))], lambda: False)
print("up", flush=True)
time.sleep(600)
"""


def test_children_of_a_killed_launcher_end(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", LAUNCHER, str(tmp_path), SLEEP]
    launcher = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == b"up\n"
    mark = f"killed-{tmp_path}"
    assert len(census.members(mark)) == 1
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    wait_for(lambda: census.members(mark) == [], "the kernel told the child")


def test_what_outlives_a_killed_launcher_can_be_ended(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", LAUNCHER, str(tmp_path), STUBBORN]
    launcher = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == b"up\n"
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    record = census.read_record(tmp_path)
    assert record is not None
    assert not record.launcher_alive
    assert len(census.end(record.mark, grace_s=0.2)) == 1
    assert census.members(record.mark) == []
