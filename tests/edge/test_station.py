"""One robot's loop with driver, worker and time in the test's hands."""

import time
from dataclasses import replace

import numpy as np
import pytest

from robots.gate import Command, CommandGate
from user_system.codec.fragments import check
from user_system.core.clock import RobotClock, WallClock
from user_system.core.errors import StoreError
from user_system.core.interfaces import Draw, Judgement, ResetPlan
from user_system.core.modes import Mode
from user_system.core.ports import Refused
from user_system.core.types import End, Plan, Purpose, Reading, Segment, Stream
from user_system.edge import loop
from user_system.edge.adder import Adder, Producer
from user_system.edge.arbiter import Arbiter
from user_system.edge.leases import Leases
from user_system.edge.messages import (
    Assignment,
    Grant,
    OperatorCommand,
    Request,
    WeightsNews,
    WeightsReady,
)
from user_system.edge.patience import SessionConfig, StationConfig
from user_system.edge.recorder import Recorder
from user_system.edge.session import Session
from user_system.edge.station import Station
from user_system.edge.wire import Telemetry
from user_system.edge.worker_client import Advice, Away, Plans
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store

PERIOD = 100_000_000


class HandDriver:
    """A driver whose periods the test makes; each begins where the last command led."""

    def __init__(self):
        self.alive, self.figures = True, {}
        self.clock = RobotClock()
        self.period = 0
        self.accepted = np.zeros(2)
        self.commands, self.stops = [], []
        self.ready = []
        self.released = self.scenes = 0
        self.fault, self.rate, self.holding = "", 1.0, False

    def go(self, count=1):
        for _ in range(count):
            self.period += 1
            fields = {"position": self.accepted.astype(np.float32), "goal": np.ones(2, np.float32)}
            reading = Reading(
                fields,
                self.accepted.copy(),
                self.period * PERIOD,
                time.monotonic_ns(),
                self.rate,
                self.fault,
            )
            self.ready.append(
                Telemetry(
                    reading,
                    self.accepted.copy(),
                    "b",
                    released=self.released,
                    scene=self.scenes,
                    holding=self.holding,
                    samples=self.samples(),
                )
            )

    def samples(self):
        """Four in the period that ends now; the last one as old as its reading."""
        stamps = self.period * PERIOD - np.arange(3, -1, -1) * PERIOD // 4
        return {"touch": Stream(stamps, stamps[:, None].astype(np.float32))}

    def poll(self):
        ready, self.ready = self.ready, []
        for seen in ready:
            self.clock.sync(seen.reading.robot_ns, seen.reading.wall_ns, self.rate)
        return ready

    def fileno(self):
        return None

    def in_flight(self, seen):
        return False

    def command(self, target, token, valid_ms):
        assert np.isfinite(target).all()
        self.commands.append((target.copy(), token))
        self.accepted = target.copy()

    def stop(self, reason):
        self.stops.append(reason)
        self.fault = reason

    def release(self):
        self.released, self.fault = self.released + 1, ""
        return self.released

    def scene(self, seed, options):
        self.scenes += 1
        return self.scenes

    def pace(self, rate):
        pass

    def take_failure(self):
        return ""

    def take_previews(self):
        return []


class HandWorker:
    """A worker that answers when the test lets it."""

    def __init__(self, spec):
        self.alive, self.spec, self.silent_s, self.thinking_s = True, spec, 0.0, 0.0
        self.news, self.asked = [], []
        self.prompt = True
        self.judge = lambda step: Judgement(0.0)

    def poll(self):
        news, self.news = self.news, []
        return news

    def fileno(self):
        return None

    def begin(self, assignment):
        self.news.append(ResetPlan(((0.0, 0.0),), {}))

    def step(self, step, observation, executed, segment, clock, *, mode, plan):
        self.asked.append((step, executed, segment, clock, plan))
        if self.prompt:
            self.answer()

    def answer(self):
        for step, executed, _, _, plan in self.asked:
            made = Plan(np.full((1, 2), 0.01, np.float32), 3) if plan else None
            judged = self.judge(step - 1) if executed is not None else None
            self.news.append(Advice(step, judged, made))
        self.asked = []

    def handed_back(self):
        pass

    def load(self, version, path):
        raise AssertionError("there are no weights")

    def forget(self):
        pass

    def stats(self):
        return {}


class Room:
    """The spool and the world outside."""

    def __init__(self):
        self.full, self.broken = False, False
        self.fragments, self.reports, self.answers, self.wants = [], [], [], 0
        self.waiting, self.epoch = 0, 1

    def put(self, fragment):
        check(fragment)
        if self.broken:
            raise StoreError("no space left")
        self.fragments.append(fragment)

    def backlog(self, producer, epoch):
        return self.waiting

    def begin_epoch(self, producer):
        self.epoch += 1
        return self.epoch

    def want(self, robot):
        self.wants += 1

    def report(self, report):
        self.reports.append(report)

    def answer(self, answer):
        self.answers.append(answer)

    def need(self, robot, version):
        raise AssertionError

    def state(self, station, seen):
        pass

    def preview(self, *picture):
        raise AssertionError


class Hand:
    """A station whose loop runs one period at a time."""

    def __init__(self, processes, tmp_path, driver=None, make_worker=HandWorker):
        spec = processes.SPEC
        self.driver = driver or HandDriver()
        policy = replace(processes.Seeker(tmp_path).spec, extras={}, budget_ms=1.0)
        self.worker = make_worker(policy)
        self.room = Room()
        wall = WallClock()
        session = SessionConfig(want_ms=0.0, plugin_retry_ms=0.0)
        self.station = Station(
            session=Session("arm", session, Leases(wall), wall, "boot"),
            spec=spec,
            driver=self.driver,
            worker=self.worker,
            arbiter=Arbiter(spec),
            recorder=Recorder(Adder(Producer("arm", 1, "boot", "run", spec, "p"), 0), self.room),
            outside=self.room,
            policy="p",
            task="t",
            config=StationConfig(drive_hz=1000.0, person_s=0.05),
        )
        self.session = self.station.session
        self.number = 0
        self.station.post(Grant("arm", 1))

    def go(self, count=1):
        """Run ``count`` periods."""
        for _ in range(count):
            self.driver.go()
            self.run()

    def run(self):
        """Run the loop until it waits for the driver."""
        robot, tell = self.station, self.station.tell
        left = len(self.driver.ready)

        def once(seen):
            nonlocal left
            tell(seen)
            left -= 1
            robot.open = left > 0

        robot.open, robot.tell = True, once
        loop.run(robot)
        robot.tell = tell

    def assign(self, purpose=Purpose.TRAIN, **more):
        self.number += 1
        self.station.post(Assignment("arm", purpose, "t", 1, f"e{self.number}", **more))
        self.station._attend()

    def until_auto(self):
        self.go(2)
        assert self.room.wants
        self.assign()
        for _ in range(10):
            if self.session.mode is Mode.AUTO:
                return self
            self.go()
        raise AssertionError(self.session.mode)


@pytest.fixture
def hand(processes, tmp_path):
    made = Hand(processes, tmp_path)
    yield made
    made.station.let_go()


def columns(fragments, name):
    return np.concatenate([getattr(f, name) for f in fragments])


def test_an_episode_ends_where_its_judge_says(hand):
    hand.until_auto()
    hand.worker.judge = lambda step: Judgement(1.0, step == 6, success=step == 6 or None)
    hand.go(12)
    (report,) = hand.room.reports
    assert (report.steps, report.end, report.success, report.reward) == (
        7,
        End.TERMINATED,
        True,
        7.0,
    )
    fragments = hand.room.fragments
    assert columns(fragments, "end").tolist() == [0] * 6 + [End.TERMINATED]
    assert np.allclose(columns(fragments, "executed"), 0.01)
    assert np.allclose(columns(fragments, "proposed"), 0.01)
    assert columns(fragments, "version").tolist() == [3] * 7
    assert columns(fragments, "chunk").tolist() == list(range(7))


def test_weights_that_are_too_old_rest_the_robot_until_there_are_newer_ones(hand):
    hand.until_auto()
    robot = hand.station
    robot.config = replace(robot.config, max_weights_age_s=10.0)
    robot.weights.version = 3
    hand.go(2)
    assert hand.session.mode is Mode.AUTO
    now = time.monotonic()
    robot.post(WeightsNews(4, offered_s=now - 11.0, heard_s=now))
    hand.go(3)
    assert hand.session.mode is Mode.HOLD
    assert "Version 3 of 'p' has not been known as the newest for 11 s" in hand.session.help
    assert hand.session.recording
    robot.weights.version = 4
    robot.post(WeightsNews(4, offered_s=now - 11.0, heard_s=time.monotonic()))
    hand.go(3)
    assert hand.session.mode is Mode.AUTO
    hand.worker.judge = lambda step: Judgement(0.0, terminated=True)
    hand.go(3)
    (report,) = hand.room.reports
    assert report.end is End.TERMINATED
    segments = columns(hand.room.fragments, "segment").tolist()
    assert {Segment.AUTO, Segment.HOLD} == set(segments), "what it did meanwhile is labelled"


def test_a_pinned_evaluation_is_never_stale(hand):
    robot = hand.station
    robot.config = replace(robot.config, max_weights_age_s=1.0)
    robot.weights.found(WeightsReady(3, "3", 0.0))
    robot.weights.version = 3
    robot.post(WeightsNews(9, offered_s=time.monotonic() - 100.0, heard_s=time.monotonic()))
    hand.go(2)
    hand.assign(Purpose.EVAL, version=3)
    hand.go(6)
    assert hand.session.mode is Mode.EVAL


def test_a_late_worker_costs_plans_but_neither_steps_nor_judgements(hand):
    hand.until_auto()
    hand.go(2)
    hand.worker.prompt = False
    hand.go(3)
    hand.worker.answer()
    hand.worker.prompt = True
    hand.worker.judge = lambda step: Judgement(0.0, step == 8, success=True if step == 8 else None)
    hand.go(8)
    (report,) = hand.room.reports
    assert report.steps == 9
    fragments = hand.room.fragments
    proposed = columns(fragments, "proposed")[:, 0]
    late = np.isnan(proposed)
    assert 1 <= late.sum() <= 3
    # Where there was no plan, the robot stayed where it was told to be.
    assert np.allclose(columns(fragments, "executed")[late], 0.0)
    assert hand.station.advisor.unplanned == late.sum()
    assert hand.session.mode in {Mode.HOLD, Mode.RESET}


def test_a_judgement_that_comes_late_ends_the_episode_where_it_was_over(hand):
    hand.until_auto()
    hand.go(1)
    hand.worker.judge = lambda step: (
        Judgement(1.0, True, success=True) if step == 2 else Judgement(0)
    )
    hand.worker.prompt = False
    hand.go(2)
    hand.worker.answer()
    hand.worker.prompt = True
    hand.go(1)
    (report,) = hand.room.reports
    assert report.steps == 3
    assert columns(hand.room.fragments, "end").tolist() == [0, 0, End.TERMINATED]
    assert len(hand.room.fragments[-1].observation["goal"]) == len(hand.room.fragments[-1]) + 1


def test_a_loop_that_was_late_makes_up_for_every_period(hand):
    hand.until_auto()
    hand.go(2)
    hand.driver.go(5)
    hand.run()
    hand.go(3)
    hand.worker.judge = lambda step: Judgement(0.0, timeout=True, success=False)
    hand.go(1)
    stamps = columns(hand.room.fragments, "robot_ns")
    assert (np.diff(stamps) == PERIOD).all()
    assert hand.room.reports[0].end is End.TIMEOUT
    assert hand.station.counters.overruns == 4


def test_an_emergency_stop_does_not_wait_for_the_plugin(hand):
    hand.until_auto()
    hand.worker.prompt = False
    hand.worker.spec = replace(hand.worker.spec, budget_ms=60_000.0)
    hand.station.post(Request("arm", "estop", "anybody", 0, "r1"))
    hand.go(1)  # with a budget of a minute this would not end if it waited
    assert hand.driver.stops == ["emergency stop by anybody"]
    assert hand.session.mode is Mode.ESTOP
    assert hand.room.answers[0].ok
    commands = len(hand.driver.commands)
    hand.go(3)
    assert len(hand.driver.commands) == commands


def test_a_takeover_holds_where_the_last_command_led(hand):
    hand.until_auto()
    hand.go(3)
    hand.station.post(Grant("arm", 2, "ann", 60_000))
    hand.station.post(Request("arm", "hold", "ann", 2, "r1"))
    at = hand.driver.accepted.copy()
    hand.go(3)
    assert hand.session.mode is Mode.HOLD
    assert np.allclose(hand.driver.commands[-1][0], at, atol=0.011)
    assert hand.driver.commands[-1][1] == 2
    assert np.allclose(hand.driver.commands[-1][0], hand.driver.commands[-2][0])


def test_a_disk_that_refuses_keeps_its_fragments_for_later(hand):
    hand.until_auto()
    hand.go(2)
    hand.room.broken = True
    hand.go(6)
    assert "no space" in hand.session.help
    assert hand.session.mode is Mode.HOLD
    assert hand.room.fragments == []
    hand.room.broken = False
    hand.go(1)
    sequences = [f.header.sequence for f in hand.room.fragments]
    assert sequences == list(range(len(sequences)))
    assert len(sequences) >= 1
    assert hand.room.reports[0].end is End.ABORT


def test_a_full_spool_finishes_the_episode_and_begins_no_other(hand):
    hand.until_auto()
    hand.room.full = True
    hand.go(3)
    assert hand.session.mode is Mode.AUTO
    hand.worker.judge = lambda step: Judgement(0.0, timeout=True)
    hand.go(1)
    wants = hand.room.wants
    hand.go(5)
    assert hand.room.wants == wants
    assert "spool" in hand.session.help


def test_after_an_outage_live_data_opens_a_new_epoch(hand):
    hand.room.waiting = 1000
    hand.until_auto()
    hand.go(6)
    assert {f.header.epoch for f in hand.room.fragments} == {2}
    assert hand.room.fragments[0].header.sequence == 0


def test_steps_of_a_hold_are_recorded_as_such(hand):
    hand.until_auto()
    hand.go(2)
    hand.station.post(Grant("arm", 2, "ann", 60_000))
    hand.station.post(Request("arm", "hold", "ann", 2))
    hand.go(3)
    hand.station.post(Request("arm", "hand_back", "ann", 2))
    hand.go(3)
    hand.worker.judge = lambda step: Judgement(0.0, True, success=True)
    hand.go(1)
    segments = columns(hand.room.fragments, "segment").tolist()
    assert Segment.HOLD in segments
    assert segments[0] == segments[-1] == Segment.AUTO
    assert hand.room.reports[0].segments[Segment.HOLD] == segments.count(Segment.HOLD)
    held = np.asarray(segments) == Segment.HOLD
    assert np.isnan(columns(hand.room.fragments, "proposed")[held]).all()


def test_the_main_loop_is_a_page(hand):
    import inspect

    assert len(inspect.getsource(loop.run).splitlines()) <= 25


def test_a_rewind_that_a_stop_breaks_off_has_undone_what_it_undid(hand):
    hand.until_auto()
    hand.go(6)
    hand.station.post(Grant("arm", 2, "ann", 60_000))
    hand.station.post(Request("arm", "hold", "ann", 2))
    hand.go(1)
    hand.station.post(Request("arm", "rewind", "ann", 2))
    hand.go(3)
    assert hand.session.mode is Mode.REWIND
    undone = hand.station.arbiter.rewound_to
    assert undone is not None
    hand.station.post(Request("arm", "estop", "anybody"))
    hand.go(1)
    voids = [f.header.void_from for f in hand.room.fragments if f.header.void_from is not None]
    assert voids == [undone]


def test_a_reward_that_comes_too_late_is_counted(hand):
    hand.until_auto()
    hand.worker.judge = lambda step: Judgement(1.0)
    hand.worker.prompt = False
    hand.go(8)
    hand.worker.answer()
    hand.worker.prompt = True
    hand.go(1)
    hand.worker.judge = lambda step: Judgement(1.0, timeout=True)
    hand.go(1)
    unknown = np.isnan(columns(hand.room.fragments, "reward")).sum()
    assert unknown > 0
    assert hand.station.stats()["judged_late"] == unknown


def test_a_loop_that_failed_reports_the_episode_it_had_begun_once(hand):
    hand.station.abandon()
    assert hand.room.reports == []
    hand.until_auto()
    hand.go(6)
    spooled = sum(len(f) for f in hand.room.fragments)
    hand.station.abandon()
    hand.station.abandon()
    (report,) = hand.room.reports
    assert (report.episode, report.end, report.steps) == ("e1", End.ABORT, spooled)
    assert spooled > 0


def test_rewards_belong_to_the_step_that_led_to_what_was_seen(hand):
    """Step k is judged from what was seen before and after it, and carries that reward."""
    asked = []
    step = hand.worker.step

    def note(index, observation, executed, segment, clock, **more):
        asked.append((index, observation["position"][0], executed, segment))
        step(index, observation, executed, segment, clock, **more)

    hand.worker.step = note
    hand.until_auto()
    hand.worker.judge = lambda k: Judgement(float(k), k == 5, success=k == 5 or None)
    hand.go(8)
    fragments = hand.room.fragments
    assert columns(fragments, "reward").tolist() == [0, 1, 2, 3, 4, 5]
    seen = np.concatenate([f.observation["position"][:, 0] for f in fragments])
    assert len(seen) == 7
    moved = columns(fragments, "executed")[:, 0]
    assert np.allclose(np.diff(seen), moved, atol=1e-6)
    questions = [q for q in asked if q[0] <= 6][:7]
    assert [q[0] for q in questions] == list(range(7))
    assert np.allclose([q[1] for q in questions], seen)
    assert questions[0][2] is None
    assert np.allclose([q[2][0] for q in questions[1:]], moved)


def test_a_takeover_labels_each_step_by_who_moved_the_robot_in_it(hand):
    hand.until_auto()
    hand.go(2)
    hand.station.post(Grant("arm", 2, "ann", 60_000))
    hand.station.post(Request("arm", "hold", "ann", 2))
    hand.go(1)
    hand.station.post(Request("arm", "correct", "ann", 2))
    hand.go(1)  # from here on the person's
    wish = np.array([-0.02, 0.0], np.float32)
    for number in range(3):
        now = hand.driver.clock.now_ns
        hand.driver.clock.now_ns = lambda n=hand.driver.period * PERIOD: n
        hand.station.post(
            OperatorCommand("arm", "ann", 2, "boot", number, 200.0, wish, time.monotonic_ns())
        )
        hand.station._attend()
        hand.driver.clock.now_ns = lambda n=hand.driver.period * PERIOD + PERIOD: n
        hand.station._attend()
        hand.driver.clock.now_ns = now
        hand.go(1)
    hand.station.post(Request("arm", "hand_back", "ann", 2))
    hand.go(3)
    hand.worker.judge = lambda step: Judgement(0.0, True, success=True)
    hand.go(1)
    fragments = hand.room.fragments
    segment, executed = columns(fragments, "segment"), columns(fragments, "executed")[:, 0]
    proposed = columns(fragments, "proposed")[:, 0]
    person = segment == Segment.CORRECTION
    assert person.any()
    assert (executed[person] <= 0).all()
    assert executed[person].min() == pytest.approx(-0.02)
    assert (executed[~person] >= 0).all(), "a person's motion in a step of the policy"
    assert (executed[segment == Segment.HOLD] == 0).all()
    assert np.allclose(executed[segment == Segment.AUTO], 0.01)
    # What the policy would have done is recorded beside what the person did.
    assert np.allclose(proposed[person], 0.01)
    names = np.concatenate([np.take(f.header.names, f.operator) for f in fragments])
    assert set(names[person]) == {"ann"}
    assert set(names[~person]) == {""}


class Script:
    """Drives the arm of ``hand``, whose clock is a fast one."""

    def __init__(self, hand):
        self.hand, self.number = hand, 0
        hand.driver.rate = 8.0
        hand.until_auto()
        hand.station.post(Grant("arm", 2, "script", 60_000))
        self.ask("hold")
        self.ask("correct")
        assert hand.session.mode is Mode.CORRECTION

    def ask(self, event):
        self.hand.station.post(Request("arm", event, "script", 2))
        self.hand.go(1)

    def act(self, wish, old_ms=0.0):
        """Post an action upon a state that is ``old_ms`` old."""
        wish, now = np.array(wish, np.float32), time.monotonic_ns()
        self.number += 1
        command = OperatorCommand(
            "arm", "script", 2, "boot", self.number, 200.0, wish, now, rested_ms=old_ms
        )
        self.hand.station.post(command)
        self.hand.station._attend()

    def wait(self):
        """Let the patience with it pass."""
        time.sleep(self.hand.station.config.person_s + 0.01)
        self.hand.station._attend()


@pytest.fixture
def script(hand):
    made = Script(hand)
    made.wait()
    return made


LEFT = np.array([-0.02, 0.0])


def test_a_fast_clock_stands_until_the_script_that_drives_has_acted(hand, script):
    sent, start = len(hand.driver.commands), hand.driver.accepted
    hand.go(1)
    hand.station._attend()
    assert len(hand.driver.commands) == sent, "it has not acted yet"
    script.act(LEFT)
    assert np.allclose(hand.driver.commands[-1][0] - start, LEFT), "all of it, at once"
    hand.station._attend()
    hand.go(1)
    assert len(hand.driver.commands) == sent + 1, "one command answers one period"
    script.wait()
    assert len(hand.driver.commands) == sent + 2, "nobody is waited for that long"
    assert np.allclose(hand.driver.commands[-1][0] - start, LEFT), "and silence moves nothing"


def test_who_is_late_acts_one_period_later_and_never_twice_in_one(hand, script):
    hand.go(1)
    script.wait()
    start = hand.driver.accepted
    script.act(LEFT)  # too late for this one
    assert np.allclose(hand.driver.accepted, start)
    hand.go(1)
    script.act(2 * LEFT, old_ms=500.0)
    assert np.allclose(hand.driver.accepted, start), "who answers the new state goes first"
    script.wait()
    assert np.allclose(hand.driver.accepted, start + 2 * LEFT), "the newest of the late ones"
    hand.go(1)
    script.act(LEFT)
    script.act(LEFT)
    assert np.allclose(hand.driver.accepted, start + 3 * LEFT)
    hand.go(1)
    executed = columns(hand.room.fragments, "executed")
    assert np.abs(executed).max() <= 0.05 + 1e-6


@pytest.mark.parametrize("event", ["hold", "recover", "done", "estop"])
def test_a_period_that_nobody_will_answer_is_answered_at_once(hand, script, event):
    hand.go(1)
    sent = len(hand.driver.commands)
    hand.station.post(Request("arm", event, "script", 2))
    hand.station._attend()
    assert hand.session.mode is not Mode.CORRECTION
    stopped = event == "estop"  # which the driver heard already
    assert len(hand.driver.commands) == sent + (not stopped)
    assert bool(hand.driver.stops) is stopped
    sent = len(hand.driver.commands)
    hand.station._attend()
    assert len(hand.driver.commands) == sent, "once"


def test_an_action_of_one_mode_does_not_move_the_next(hand, script):
    hand.go(1)
    script.act(LEFT)
    script.act(LEFT)  # one too many: it waits
    script.ask("recover")
    start = hand.driver.accepted
    script.wait()
    assert np.allclose(hand.driver.accepted, start)


def test_a_robot_that_does_not_stand_is_kept_supplied(hand, script):
    """One without a way to wait, or one that holds: patience must not begin anew each period."""
    sent = len(hand.driver.commands)
    for _ in range(10):
        hand.go(1)
        time.sleep(0.0125)
        hand.station._attend()
    assert len(hand.driver.commands) >= sent + 2
    script.wait()
    hand.driver.holding = True
    sent = len(hand.driver.commands)
    hand.go(1)
    assert len(hand.driver.commands) == sent + 1


@pytest.fixture
def make_hand(processes, tmp_path):
    made = []

    def make(epoch):
        hand = Hand(processes, tmp_path)
        adder = hand.station.recorder.adder
        adder.producer = replace(adder.producer, epoch=epoch)
        hand.number = epoch * 100
        made.append(hand)
        return hand

    yield make
    for hand in made:
        hand.station.let_go()


def life(hand, rng):
    """Some episodes with takeovers and late answers; the last one is cut off by a kill."""
    plans = np.random.default_rng(rng.integers(1 << 30))
    for n in range(4):
        purpose = Purpose.EVAL if n == 1 else Purpose.TRAIN
        hand.go(2)
        hand.assign(purpose)
        for _ in range(10):
            if hand.session.mode in {Mode.AUTO, Mode.EVAL}:
                break
            hand.go()
        length = int(rng.integers(5, 15))
        hand.worker.judge = lambda k, end=length: Judgement(float(k), k == end, success=k == end)
        for k in range(length + 6):
            if n == 3 and k == length - 1:
                return  # killed: no more fragments
            hand.worker.prompt = plans.random() > 0.15
            if hand.worker.prompt:
                hand.worker.answer()
            if n == 2 and k == 4:
                hand.station.post(Grant("arm", 2, "ann", 60_000))
                hand.station.post(Request("arm", "hold", "ann", 2))
            if n == 2 and k == 6:
                hand.station.post(Request("arm", "hand_back", "ann", 2))
            hand.go()
        hand.worker.prompt = True
        hand.go(3)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_drawn_is_what_happened(make_hand, tmp_path, seed):
    """Through loop, adder, a lost fragment, a kill, the store and the sampler.

    The robot goes where it is told, so for every true step: after = before + executed.
    """
    rng = np.random.default_rng(seed)
    store = Store(tmp_path / "replay").open(create=True)
    kept = []
    for epoch in (1, 2):
        hand = make_hand(epoch)
        life(hand, rng)
        fragments = hand.room.fragments
        lost = int(rng.integers(1, len(fragments) - 1))
        for number, fragment in enumerate(fragments):
            if number == lost:
                header = fragment.header
                source = header.producer, header.epoch, header.sequence
                store.skip(Refused(*source, "damaged", header.boot))
            else:
                assert store.append([fragment]) == []
                kept.append(fragment)
    data = ReplayData(store.env, seed=seed)
    known = {
        (f.header.epoch, int(f.robot_ns[i]))
        for f in kept
        for i in range(len(f))
        if f.header.purpose is not Purpose.EVAL
        and f.segment[i] == Segment.AUTO
        and not np.isnan(f.reward[i])
    }
    columns = ("robot_ns", "k", "purpose", "segment", "proposed")
    batch = data.draw(Draw(n=2000, mix={"online": 1.0}, columns=columns))
    moved = batch.next_observation["position"] - batch.observation["position"]
    assert np.allclose(moved, batch.action, atol=1e-6)
    assert np.array_equal(batch.reward, batch.extras["k"])
    assert set(batch.extras["purpose"]) == {Purpose.TRAIN}
    assert set(batch.extras["segment"]) == {Segment.AUTO}
    assert (batch.discount[batch.end == End.TERMINATED] == 0).all()
    assert (batch.discount[batch.end != End.TERMINATED] > 0).all()
    assert 0.5 * len(known) < data.count("online") <= len(known)
    unplanned = np.isnan(batch.extras["proposed"][:, 0])
    assert (batch.action[unplanned] == 0).all()
    rows = data.draw(Draw(n=2000, mix={"online": 1.0}, unit="nstep", length=3, gamma=0.5))
    steps = np.round((rows.next_observation["position"] - rows.observation["position"]) / 0.01)
    assert (steps[:, 0] <= 3).all()
    store.close()


def test_samples_are_recorded_up_to_the_last_observation(hand):
    hand.until_auto()
    for done in (6, 3):
        hand.room.fragments.clear()
        hand.worker.judge = lambda step, done=done: Judgement(0.0, step == done, success=True)
        for _ in range(20):
            hand.go()
            if hand.room.fragments and hand.room.fragments[-1].final:
                break
        fragments = hand.room.fragments
        times = columns(fragments, "robot_ns")
        stamps = np.concatenate([f.streams["touch"].stamps for f in fragments])
        assert len(times) == done + 2
        assert stamps.tolist() == list(
            range(times[0] - 3 * PERIOD // 4, times[-1] + 1, PERIOD // 4)
        )
        hand.assign()


# --- action chunks --------------------------------------------------------------------------------


class ChunkWorker(HandWorker):
    """Judges at once; plans of ``horizon`` actions come when the test lets them."""

    def __init__(self, spec, horizon=8):
        super().__init__(replace(spec, horizon=horizon, execute=horizon, budget_ms=1.0))
        self.wanted, self.delay, self.lost = [], 1, False
        self.action = lambda k, i: 0.01
        self.now, self.took_ms = 0, 150.0

    def step(self, step, observation, executed, segment, clock, *, mode, plan):
        self.now = step
        judged = self.judge(step - 1) if executed is not None else None
        self.news.append(Advice(step, judged, later=plan))
        if plan:
            self.wanted.append(step)

    def poll(self):
        """The plan for step k comes when step k + delay has asked."""
        due = [k for k in self.wanted if self.now - k >= self.delay and not self.lost]
        self.wanted = [k for k in self.wanted if k not in due]
        for k in due:
            actions = [np.full(2, self.action(k, i), np.float32) for i in range(self.spec.horizon)]
            self.news.append(Plans(k, Plan(np.stack(actions), 3), self.took_ms))
        return super().poll()


class GateDriver(HandDriver):
    """A driver with a real command gate: what the robot is told, tick by tick."""

    TICKS = 10

    def __init__(self, spec):
        super().__init__()
        self.gate = CommandGate(
            spec.limits,
            tick_hz=spec.tick_hz,
            hold_after_ms=spec.hold_after_ms,
            stop_after_ms=spec.stop_after_ms,
            boot="b",
        )
        self.gate.start(np.zeros(2))
        self.sequence, self.told, self.holds = 0, [np.zeros(2)], 0

    def go(self, count=1):
        for _ in range(count):
            for tick in range(self.TICKS):
                now = self.period * PERIOD + (tick + 1) * PERIOD // self.TICKS
                made = self.gate.tick(now)
                self.told.append(made.setpoint)
                self.holds += made.holding
                self.accepted = made.target.copy()
            super().go()

    def command(self, target, token, valid_ms):
        super().command(target, token, valid_ms)
        self.sequence += 1
        now = self.period * PERIOD
        command = Command(token, "b", self.sequence, now + int(valid_ms * 1e6), target)
        assert self.gate.offer(command, now).accepted

    def motion(self):
        """Velocity and acceleration in each tick, per s and per s²."""
        dt = 1.0 / 100.0
        velocity = np.diff(np.stack(self.told), axis=0) / dt
        return velocity, np.diff(velocity, axis=0) / dt


@pytest.fixture
def chunky(processes, tmp_path):
    def make(horizon=8, driver=None, **session):
        made = Hand(processes, tmp_path, driver, lambda spec: ChunkWorker(spec, horizon))
        for name, value in session.items():
            object.__setattr__(made.session.config, name, value)
        hands.append(made)
        return made

    hands = []
    yield make
    for hand in hands:
        hand.station.let_go()


def finish(hand):
    hand.worker.judge = lambda step: Judgement(0.0, True, success=True)
    hand.go(2)
    return hand.room.fragments


def test_a_late_plan_is_used_from_where_it_belongs(chunky):
    hand = chunky()
    hand.worker.delay, hand.worker.took_ms = 2, 120.0
    hand.worker.action = lambda k, i: 0.0001 * (k + i)
    hand.until_auto()
    hand.go(30)
    fragments = finish(hand)
    position, chunk = columns(fragments, "position"), columns(fragments, "chunk")
    proposed = columns(fragments, "proposed")[:, 0]
    steps = np.arange(len(position))
    planned = ~np.isnan(proposed)
    assert (~planned).nonzero()[0].tolist() == [0, 1], "only the first plan is waited for"
    assert np.allclose(proposed[planned], 0.0001 * steps[planned], atol=1e-7)
    # Each plan is for the step that its position points back to, and began two steps late.
    asked_at = (steps - position)[planned]
    assert sorted(set(asked_at.tolist())) == list(range(0, len(steps) - 2, 6))
    assert set(position[planned].tolist()) == {2, 3, 4, 5, 6, 7}
    assert (np.diff(chunk[planned]) >= 0).all()
    assert np.allclose(
        columns(fragments, "executed")[planned], columns(fragments, "proposed")[planned]
    )
    ages = hand.station.advisor.ages._ages
    assert min(ages) >= 200.0
    assert max(ages) < 1000.0


def test_the_first_plan_of_a_slow_policy_is_waited_for_at_rest(chunky):
    hand = chunky()
    hand.worker.delay, hand.worker.took_ms = 2, 120.0
    hand.until_auto()
    hand.go(4)
    finish(hand)
    hand.room.fragments.clear()
    hand.worker.judge = lambda step: Judgement(0.0)
    hand.until_auto()
    hand.go(10)
    fragments = finish(hand)
    proposed = columns(fragments, "proposed")[:, 0]
    segments = columns(fragments, "segment")
    held = segments == Segment.HOLD
    assert held.tolist() == [True, True] + [False] * (len(held) - 2)
    assert np.isnan(proposed).tolist() == held.tolist(), "whatever the policy drives has a plan"
    assert columns(fragments, "position")[2] == 2
    assert hand.session.mode is not Mode.AUTO


def test_a_robot_without_plans_rests_holds_and_goes_on_with_a_newer_one(chunky):
    hand = chunky()
    hand.until_auto()
    hand.go(12)
    hand.worker.lost = True
    hand.go(14)
    before = hand.station.recorder.step
    assert hand.session.mode is Mode.HOLD
    assert hand.session.starving
    at = hand.driver.commands[-1][0]
    hand.go(3)
    assert np.allclose(hand.driver.commands[-1][0], at)
    assert hand.session.help == ""
    # What was under way when it stalled comes at last, and is of no use.
    stale = [k for k in hand.worker.wanted if k < before - 3]
    hand.worker.lost = False
    hand.go(5)
    assert hand.session.mode is Mode.AUTO
    fragments = finish(hand)
    proposed = columns(fragments, "proposed")[:, 0]
    starts = np.arange(len(proposed)) - columns(fragments, "position")
    stalled = np.isnan(proposed).nonzero()[0]
    first = stalled[stalled > 2][0]
    after = starts[stalled[-1] + 1 :]
    assert (after > first).all(), "an observation from before the stall"
    assert stale == [] or not set(stale) & set(after.tolist())
    executed = columns(fragments, "executed")
    assert np.allclose(executed[np.isnan(proposed)], 0.0), "no action is repeated"
    segments = columns(fragments, "segment")
    assert set(segments[np.isnan(proposed)].tolist()) == {Segment.AUTO, Segment.HOLD}
    assert set(segments[~np.isnan(proposed)].tolist()) == {Segment.AUTO}


def test_a_question_asked_while_it_came_to_rest_counts_once_it_holds(chunky):
    hand = chunky()
    hand.until_auto()
    hand.go(6)
    hand.worker.delay = 99
    while hand.station.advisor.acting is not None:
        hand.go()
    stalled = hand.station.recorder.step
    hand.worker.wanted = [k for k in hand.worker.wanted if k >= stalled]
    hand.go(5)
    assert hand.session.mode is Mode.HOLD
    asked = hand.worker.wanted[0]
    assert asked < stalled + 4, "before it held"
    hand.worker.delay = 0
    hand.go(1)
    assert hand.session.mode is Mode.AUTO
    assert hand.station.advisor.acting.position == hand.station.recorder.step - asked


def test_the_arm_slows_down_within_its_limits_when_plans_stop(chunky, processes):
    spec = processes.SPEC
    driver = GateDriver(spec)
    hand = chunky(driver=driver)
    # Half a metre per second without a pause, and back again.
    hand.worker.action = lambda k, i: 0.05 if k < 15 else -0.05
    hand.until_auto()
    hand.go(14)
    hand.worker.lost = True
    running = len(driver.told)
    hand.go(14)
    velocity, acceleration = driver.motion()
    assert np.abs(velocity[running - 30 : running]).max() > 0.3, "it moved when plans stopped"
    assert np.abs(velocity).max() <= spec.limits.velocity[0] * 1.001
    assert np.abs(acceleration).max() <= spec.limits.acceleration[0] * 1.02
    assert np.abs(velocity[-20:]).max() == 0.0, "it rests"
    assert driver.holds == 0, "it was told to, it did not fall silent"
    assert hand.session.mode is Mode.HOLD
    hand.worker.lost = False
    hand.go(6)
    velocity, acceleration = driver.motion()
    assert np.abs(velocity[-10:]).max() > 0.3, "it goes on"
    assert np.abs(acceleration).max() <= spec.limits.acceleration[0] * 1.02


def test_chunks_that_disagree_are_joined_within_the_limits(chunky, processes):
    spec = processes.SPEC
    driver = GateDriver(spec)
    hand = chunky(driver=driver)
    absolute = replace(spec.action, delta=(False, False), low=(-0.5, -0.5), high=(0.5, 0.5))
    hand.station.arbiter.spec = replace(spec, action=absolute)
    hand.worker.action = lambda k, i: 0.4 if (k // 4) % 2 else -0.4
    hand.until_auto()
    hand.go(40)
    velocity, acceleration = driver.motion()
    assert np.ptp(np.stack(driver.told)[:, 0]) > 0.3, "they did disagree"
    assert np.abs(velocity).max() <= spec.limits.velocity[0] * 1.001
    assert np.abs(acceleration).max() <= spec.limits.acceleration[0] * 1.02


def test_a_robot_that_starves_for_long_asks_for_help(chunky):
    hand = chunky(starved_ms=0.0)
    hand.until_auto()
    hand.worker.lost = True
    hand.station._listen_to_worker()
    hand.worker.news.append(Away("the head is out of reach"))
    hand.go(16)
    assert hand.session.mode is Mode.HOLD
    (report,) = hand.room.reports
    assert report.end is End.ABORT
    # The next episode waits until the policy can be reached.
    hand.assign()
    hand.go(12)
    assert hand.session.help == "the head is out of reach"
    assert hand.session.mode is Mode.HOLD
    hand.worker.news.append(Away(""))
    hand.worker.lost = False
    hand.go(3)
    assert hand.session.mode is Mode.AUTO


def test_a_person_may_take_over_a_robot_that_starves(chunky):
    hand = chunky()
    hand.until_auto()
    hand.worker.lost = True
    hand.go(14)
    assert hand.session.starving
    hand.station.post(Grant("arm", 2, "ann", 60_000))
    hand.station.post(Request("arm", "hold", "ann", 2, "r1"))
    hand.worker.lost = False
    hand.go(6)
    assert hand.room.answers[-1].ok
    assert hand.session.mode is Mode.HOLD, "not before it is handed back"
    hand.station.post(Request("arm", "hand_back", "ann", 2, "r2"))
    hand.go(4)
    assert hand.session.mode is Mode.AUTO


def test_a_policy_that_thinks_for_ever_is_restarted(chunky):
    hand = chunky()
    hand.until_auto()
    hand.worker.thinking_s = 60.0
    hand.go(1)
    assert hand.station.hung
    assert "hangs, silent for 10.0 s" in hand.session.help
