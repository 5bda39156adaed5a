"""A robot host with real driver and worker processes: what dies, hangs or lies, and what stays."""

import os
import signal
import time
from collections import defaultdict

import numpy as np
import pytest

from user_system.codec.fragments import check
from user_system.core.types import End, Purpose, Segment
from user_system.edge.stop import StopSocket, ring

pytestmark = pytest.mark.system


def episodes(fragments):
    found = defaultdict(list)
    for fragment in fragments:
        check(fragment)
        found[fragment.header.episode].append(fragment)
    return found


def check_continuous(parts):
    """Fragments of one episode join without a gap; actions explain how targets moved."""
    at = 0
    for part in parts:
        assert part.header.start == at
        at += len(part)
    assert all(not part.final for part in parts[:-1])
    stamps = np.concatenate([part.robot_ns for part in parts])
    assert (np.diff(stamps) > 0).all()
    return at


def test_episodes_are_recorded_whole(make_box, wait_for):
    box = make_box()
    box.start()
    wait_for(lambda: len(box.head.reports) >= 4, "four episodes")
    box.stop()
    found = episodes(box.fragments("arm"))
    for report in box.head.reports:
        if report.end is End.ABORT:
            continue
        parts = found[report.episode]
        assert check_continuous(parts) == report.steps
        assert report.end is End.TERMINATED
        assert report.success is True
        assert parts[-1].header.success is True
        assert int(parts[-1].end[-1]) == End.TERMINATED
        rewards = np.concatenate([part.reward for part in parts])
        assert rewards[-1] == 1.0
        assert not np.isnan(rewards).any()
        positions = np.concatenate([part.observation["position"] for part in parts])
        executed = np.concatenate([part.executed for part in parts])
        assert len(positions) == report.steps + 1
        assert np.abs(positions[-1] - parts[-1].observation["goal"][-1]).max() < 0.02
        # What was executed adds up to the way that was gone, but for the lag of one action.
        assert np.allclose(executed.sum(0), positions[-1] - positions[0], atol=0.06)
        assert (np.concatenate([part.segment for part in parts]) == Segment.AUTO).all()
        assert all(part.extras["gain"].dtype == np.float32 for part in parts)
    sequences = [f.header.sequence for f in box.fragments("arm")]
    assert sequences == list(range(len(sequences)))


def test_killed_driver_faults_until_released(make_box, wait_for):
    box = make_box(("arm", "leg"))
    box.start()
    wait_for(lambda: box.mode("arm") == "auto" and box.mode("leg") == "auto", "both at work")
    os.kill(box.agent.supervisor.pid("driver-arm"), signal.SIGKILL)
    box.wait_mode("fault")
    fault = [r for r in box.head.reports if r.robot == "arm"][-1]
    assert fault.end is End.FAULT
    pid = wait_for(lambda: box.agent.supervisor.pid("driver-arm"), "another driver")
    assert pid
    # The other one works on, and nothing but a release clears the fault.
    done = len([r for r in box.head.reports if r.robot == "leg"])
    wait_for(
        lambda: len([r for r in box.head.reports if r.robot == "leg"]) >= done + 3, "leg's episodes"
    )
    assert box.mode("arm") == "fault"
    box.head.grant("arm", "ann")
    wait_for(lambda: "restarted" in box.head.helps["arm"] or box.mode("arm") == "fault", "the help")
    wait_for(lambda: box.head.ask("arm", "release").ok, "a release")
    box.wait_mode("hold")
    assert box.head.ask("arm", "hand_back").ok
    box.wait_mode("auto")


def test_killed_worker_is_restarted(make_box, wait_for):
    box = make_box()
    box.start()
    box.wait_mode("auto")
    os.kill(box.agent.supervisor.pid("worker"), signal.SIGKILL)
    wait_for(lambda: ("arm", "hold") in box.head.modes_seen[-2:], "a hold")
    wait_for(lambda: any(r.end is End.ABORT for r in box.head.reports), "an aborted episode")
    count = len(box.head.reports)
    wait_for(
        lambda: any(r.end is End.TERMINATED for r in box.head.reports[count:]), "the next success"
    )


@pytest.mark.parametrize("mischief", ["raise", "nan"])
def test_bad_plugin_is_named_and_isolated(make_box, wait_for, mischief):
    box = make_box()
    box.start()
    box.wait_mode("auto")
    box.mischief.write_text(mischief)
    wait_for(lambda: "3 failures in a row" in box.head.helps["arm"], "a call for help")
    assert "'seeker'" in box.head.helps["arm"]
    assert box.mode() == "hold"
    box.mischief.unlink()
    box.head.grant("arm", "ann")
    assert box.head.ask("arm", "hand_back").ok
    box.wait_mode("auto")


def test_takeover_while_the_plugin_hangs(make_box, wait_for):
    box = make_box()
    box.start()
    box.wait_mode("auto")
    box.mischief.write_text("hang")
    wait_for(lambda: "hangs" in box.head.helps["arm"], "a call for help that says so")
    assert "'seeker'" in box.head.helps["arm"]
    box.head.grant("arm", "ann")
    assert box.head.ask("arm", "recover").ok
    before = box.head.observed["arm"]["position"].copy()

    def moved():
        box.head.command("arm", (0.03, 0.0))
        return abs(box.head.observed["arm"]["position"][0] - before[0]) > 0.1

    wait_for(moved, "motion by the person")
    box.mischief.unlink()
    assert box.head.ask("arm", "hand_back").ok
    box.wait_mode("auto")
    box.stop()
    helped = [r for r in box.head.reports if r.human_steps]
    assert len(helped) == 1
    assert helped[0].end is End.HANDBACK
    parts = episodes(box.fragments("arm"))[helped[0].episode]
    segments = np.concatenate([part.segment for part in parts])
    executed = np.concatenate([part.executed for part in parts])
    human = segments == Segment.RECOVERY
    assert human.sum() == helped[0].human_steps
    assert executed[human][:, 0].sum() > 0.09
    assert np.abs(executed[human]).max() <= 0.05 + 1e-6


def test_takeover_correction_and_hand_back(make_box, wait_for):
    box = make_box()
    box.start()
    box.wait_mode("auto")
    box.head.grant("arm", "ann")
    wait_for(lambda: box.head.ask("arm", "hold").ok, "a takeover")
    assert box.head.ask("arm", "rewind").ok
    wait_for(lambda: "Rewound" in box.head.helps["arm"], "the end of the rewind")
    assert box.head.ask("arm", "correct").ok
    box.wait_mode("correction")
    before = box.head.observed["arm"]["position"][1]

    def corrected():
        box.head.command("arm", (0.0, 0.02))
        return abs(box.head.observed["arm"]["position"][1] - before) > 0.03

    wait_for(corrected, "motion by the person")
    count = len(box.head.reports)
    assert box.head.ask("arm", "hand_back").ok
    wait_for(lambda: box.head.reports[count:], "the end of the episode")
    box.stop()
    report = box.head.reports[count]
    assert report.end is End.TERMINATED
    assert report.takeovers == 1
    parts = episodes(box.fragments("arm"))[report.episode]
    check_continuous(parts)
    segments = [Segment(int(s)) for part in parts for s in part.segment]
    order = [s for i, s in enumerate(segments) if i == 0 or s != segments[i - 1]]
    assert order[0] is Segment.AUTO
    assert order[-1] is Segment.AUTO
    assert order.index(Segment.REWIND) < order.index(Segment.CORRECTION)
    voids = [p.header for p in parts if p.header.void_from is not None]
    assert len(voids) == 1
    assert segments[voids[0].start - 1] is Segment.REWIND
    assert voids[0].void_from == 0


def test_agent_killed_driver_holds(make_box, wait_for, processes, tmp_path):
    """The agent is a process of its own here; its driver holds by itself and lives on."""
    box = make_box(rate=1.0)
    pid = os.fork()
    if pid == 0:
        run_agent_until_killed(box, tmp_path)
    try:
        wait_for(lambda: (tmp_path / "auto").exists() and box.told(), "the agent at work")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    killed = box.told()[-1][0]
    limit = processes.SPEC.hold_after_ms * 1e6 + 1e9 / processes.SPEC.control_hz
    time.sleep(5 * limit / 1e9)
    assert box.told()[-1][0] - killed <= limit
    # A second agent takes driver and worker over: nothing is started twice, there is no fault, and
    # what it would kill is what works.
    box.start()
    box.wait_mode("auto")
    wait_for(lambda: box.head.reports, "an episode")
    assert "fault" not in {mode for _, mode in box.head.modes_seen}
    assert set(box.agent.supervisor.stats().values()) == {0.0}
    assert all(child.process is None for child in box.agent.supervisor._children.values())


def run_agent_until_killed(box, tmp_path):
    try:
        box.start()
        box.head.then = Purpose.TRAIN
        while True:
            if box.mode() == "auto" and not (tmp_path / "auto").exists():
                (tmp_path / "auto").write_text("")
            signal.sigtimedwait([], 0.01)
    finally:
        os._exit(1)


def test_emergency_stop_is_latched(make_box, wait_for):
    box = make_box()
    box.start()
    box.wait_mode("auto")
    assert box.head.ask("arm", "estop", holder="anybody").ok
    assert box.mode() == "estop" or wait_for(lambda: box.mode() == "estop", "the stop")
    assert box.told()[-1][1] == "stop" or wait_for(lambda: box.told()[-1][1] == "stop", "rest")
    report = box.head.reports[-1]
    assert report.end is End.ABORT
    refused = box.head.ask("arm", "release")
    assert not refused.ok
    assert "lease" in refused.error
    box.head.grant("arm", "ann")
    assert box.head.ask("arm", "release").ok
    box.wait_mode("hold")
    stopped = len(box.told())
    assert box.told()[stopped - 1][1] == "recover"
    assert box.head.ask("arm", "hand_back").ok
    box.wait_mode("auto")


def test_the_stop_at_the_robot_host_needs_no_head(make_box, wait_for, tmp_path):
    """Nobody at the head says a word from here on; every robot of this host stops, and stays."""
    box = make_box(("arm", "leg"))
    box.start()
    wait_for(lambda: box.mode("arm") == "auto" and box.mode("leg") == "auto", "both at work")
    local = StopSocket(tmp_path, box.agent.stop)
    local.start()
    ring(tmp_path, "ann")
    for robot in ("arm", "leg"):
        box.wait_mode("estop", robot)
        assert "emergency stop by ann" in box.agent.stations[robot].session.fault
    local.close()


def test_demonstration(make_box, wait_for):
    box = make_box()
    box.head.purposes = [Purpose.COLLECT]
    box.start()
    wait_for(lambda: "demonstration" in box.head.helps.get("arm", ""), "the robot waiting")
    box.head.grant("arm", "ann")
    assert box.head.ask("arm", "demonstrate").ok

    def guided():
        seen = box.head.observed["arm"]
        box.head.command("arm", np.clip(seen["goal"] - seen["position"], -0.03, 0.03))
        return box.head.reports

    wait_for(guided, "the end of the demonstration")
    box.stop()
    report = box.head.reports[0]
    assert (report.purpose, report.end) == (Purpose.COLLECT, End.TERMINATED)
    assert report.human_steps == report.steps
    parts = episodes(box.fragments("arm"))[report.episode]
    assert {name for part in parts for name in part.header.names} >= {"ann"}
    assert all((part.segment == Segment.DEMO).all() for part in parts)


@pytest.mark.parametrize("how", ["finish", "close"])
def test_an_agent_that_ends_leaves_no_robot_waiting_for_a_person(make_box, wait_for, how):
    box = make_box(("arm", "leg"))
    box.start()
    wait_for(lambda: len(box.head.reports) >= 2 and box.mode("leg") == "auto", "at work")
    getattr(box.agent, how)()
    box.thread.join(30.0)
    assert not box.thread.is_alive()
    box.agent = None
    assert "fault" not in {mode for _, mode in box.head.modes_seen}
    if how == "finish":
        assert {report.end for report in box.head.reports} == {End.TERMINATED}, "all were finished"
    done = len(box.head.reports)
    box.start()
    wait_for(lambda: len(box.head.reports) >= done + 4, "the next life goes on by itself")
    assert "fault" not in {mode for _, mode in box.head.modes_seen}
