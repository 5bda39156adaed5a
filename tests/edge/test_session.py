from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from user_system.core.clock import MS
from user_system.core.errors import LeaseError, LinkError
from user_system.core.interfaces import Judgement, ResetPlan
from user_system.core.modes import HUMAN_MODES, POLICY_MODES, STOPPED_MODES, TABLE, Event, Mode
from user_system.core.types import End, Purpose, Reading, Segment
from user_system.edge import effects as do
from user_system.edge.leases import Leases
from user_system.edge.messages import Assignment, Grant, OperatorCommand, Request
from user_system.edge.patience import SessionConfig
from user_system.edge.session import Session
from user_system.edge.wire import Telemetry


class ManualClock:
    """Time that stands until it is told to go on."""

    def __init__(self):
        self.now = 10**12

    def now_ns(self) -> int:
        return self.now

    def sleep_until(self, deadline_ns: int) -> None:
        self.now = max(self.now, deadline_ns)


class Desk:
    """A session and the hands that carry out what it wants, so far as it must hear of them."""

    def __init__(self, **config):
        self.clock = ManualClock()
        self.session = Session(
            "arm", SessionConfig(**config), Leases(self.clock), self.clock, "boot"
        )
        self.done: list[do.Effect] = []
        self.released = self.scene = 0
        self.fault = ""
        self.token = 0
        self.episode = 0
        self.grant()

    def hands(self) -> None:
        while self.session.effects:
            effect = self.session.effects.pop(0)
            self.done.append(effect)
            if isinstance(effect, do.Scene):
                self.scene += 1
                self.session.scene_as(self.scene)
            elif isinstance(effect, do.Release):
                self.released, self.fault = self.released + 1, ""
                self.session.released_as(self.released)
            elif isinstance(effect, do.Stop):
                self.fault = effect.reason

    def took(self, kind: type) -> list:
        return [effect for effect in self.done if isinstance(effect, kind)]

    def grant(self, holder: str = "", ttl_ms: int = 60_000, realtime: bool = False) -> int:
        self.token += 1
        self.session.grant(Grant("arm", self.token, holder, ttl_ms if holder else 0, realtime))
        self.hands()
        return self.token

    def see(self, **gate) -> None:
        reading = Reading({}, np.zeros(2), self.clock.now, self.clock.now, 1.0, self.fault)
        telemetry = Telemetry(
            reading, np.zeros(2), "b", released=self.released, scene=self.scene, **gate
        )
        self.session.seen(telemetry)
        self.hands()

    def pass_ms(self, ms: float) -> None:
        self.clock.now += int(ms * MS)
        self.session.tick()
        self.hands()

    def ask(self, event: str, who: str = "ann", token: int | None = None, success=None):
        number = self.token if token is None else token
        answer = self.session.request(Request("arm", event, who, number, "", success))
        self.hands()
        return answer

    def steer(self, sequence: int, who="ann", boot="boot", age_ms=0.0) -> bool:
        action = np.zeros(2, np.float32)
        born = self.clock.now - int(age_ms * MS)
        command = OperatorCommand("arm", who, self.token, boot, sequence, 200.0, action, born)
        return self.session.command(command)

    def assign(self, purpose: Purpose = Purpose.TRAIN, **more) -> Assignment:
        self.episode += 1
        assignment = Assignment("arm", purpose, "t", 1, f"e{self.episode}", **more)
        self.session.assign(assignment)
        return assignment

    def until(self, mode: Mode, purpose: Purpose = Purpose.TRAIN) -> "Desk":
        """Bring a fresh session to ``mode`` the usual way."""
        self.session.worker_ready()
        self.see()
        self.pass_ms(1)
        assert self.took(do.Want)
        self.assign(purpose)
        self.pass_ms(1)
        assert self.session.mode is Mode.RESET
        self.session.begun(ResetPlan(((0.0, 0.0),), {}))
        self.session.reset_reached()
        self.hands()
        self.see()
        assert self.session.mode is Mode.HOLD
        self.pass_ms(1)
        if mode is Mode.DEMO:
            self.grant("ann")
            assert self.ask("demonstrate").ok
        assert self.session.mode is mode
        return self


# --- the usual way ------------------------------------------------------------------------------


def test_an_episode_from_want_to_report():
    desk = Desk().until(Mode.AUTO)
    session = desk.session
    assert session.recording
    assert session.wants_plan
    session.counted(Segment.AUTO)
    session.judge(0, Judgement(0.0))
    assert session.mode is Mode.AUTO
    session.counted(Segment.AUTO)
    session.judge(1, Judgement(1.0, terminated=True, success=True))
    desk.hands()
    assert session.mode is Mode.HOLD
    (finish,) = desk.took(do.Finish)
    assert (finish.end, finish.success, finish.index) == (End.TERMINATED, True, 1)
    wants = len(desk.took(do.Want))
    desk.pass_ms(3000)
    assert len(desk.took(do.Want)) == wants + 1


def test_one_that_finishes_ends_its_episode_and_begins_nothing_more():
    desk = Desk().until(Mode.AUTO)
    session = desk.session
    session.finishing = True
    desk.pass_ms(100)
    assert (session.mode, session.at_rest) == (Mode.AUTO, False)
    session.counted(Segment.AUTO)
    session.judge(0, Judgement(1.0, terminated=True, success=True))
    desk.hands()
    (finish,) = desk.took(do.Finish)
    assert finish.end is End.TERMINATED
    wants = len(desk.took(do.Want))
    desk.pass_ms(9000)
    assert len(desk.took(do.Want)) == wants
    assert session.at_rest


def test_one_that_finishes_does_not_begin_what_it_was_assigned():
    desk = Desk()
    desk.session.worker_ready()
    desk.see()
    desk.session.finishing = True
    desk.assign()
    desk.pass_ms(1)
    assert (desk.session.mode, desk.session.at_rest) == (Mode.HOLD, True)


def test_one_that_finishes_does_not_wait_for_a_person_who_has_gone():
    """The head that they would come back through may have made way for another one."""
    desk = Desk().until(Mode.AUTO)
    session = desk.session
    desk.grant("ann")
    assert desk.ask("hold").ok
    session.finishing = True
    desk.pass_ms(session.config.left_ms + 100)
    assert not session.at_rest, "ann holds it"
    desk.grant()  # she gives it up
    desk.pass_ms(session.config.left_ms + 100)
    (finish,) = desk.took(do.Finish)
    assert finish.end is End.ABORT
    assert (session.at_rest, session.paused) == (True, True)


def test_what_a_person_holds_in_an_episode_is_not_at_rest():
    desk = Desk().until(Mode.AUTO)
    desk.grant("ann")
    assert desk.ask("hold").ok
    assert (desk.session.mode, desk.session.at_rest) == (Mode.HOLD, False)
    assert desk.ask("reset").ok
    assert desk.session.at_rest
    desk.session.estop("ann")
    assert desk.session.at_rest, "nobody need release it before its agent can be renewed"


def test_evaluations_run_in_their_own_mode():
    desk = Desk().until(Mode.EVAL, Purpose.EVAL)
    assert desk.session.segment is Segment.AUTO


def test_a_pinned_version_is_waited_for():
    desk = Desk()
    session = desk.session
    session.worker_ready()
    desk.see()
    desk.assign(Purpose.EVAL, version=9)
    session.unready = "Waits for version 9 of its policy."
    desk.pass_ms(1)
    session.begun(ResetPlan(((0.0,),)))
    session.reset_reached()
    desk.pass_ms(1)
    assert session.mode is Mode.HOLD
    assert "version 9" in session.help
    session.unready = ""
    desk.pass_ms(1)
    assert session.mode is Mode.EVAL


def test_stale_weights_hold_and_newer_ones_go_on_by_themselves():
    desk = Desk().until(Mode.AUTO)
    session = desk.session
    session.stale = "version 3 is old"
    desk.pass_ms(1)
    assert (session.mode, session.help, session.paused) == (Mode.HOLD, "version 3 is old", False)
    assert session.recording, "the episode waits"
    assert not session.fault, "it is no fault"
    desk.pass_ms(60_000)
    assert session.mode is Mode.HOLD
    session.stale = ""
    desk.pass_ms(1)
    assert (session.mode, session.help) == (Mode.AUTO, "")
    assert desk.took(do.Replan), "no plan of the old ones is carried out"
    assert not desk.took(do.Finish)


@pytest.mark.parametrize("event", ["recover", "rewind", "correct"])
def test_where_a_person_stepped_in_newer_weights_change_nothing(event):
    desk = Desk().until(Mode.AUTO)
    session = desk.session
    session.stale = "old"
    desk.pass_ms(1)
    desk.grant("ann")
    assert desk.ask(event).ok
    session.stale = ""
    session.rewound()
    desk.pass_ms(1)
    desk.grant()  # ann went away
    desk.pass_ms(1)
    assert (session.mode, session.paused) == (Mode.HOLD, True)
    desk.grant("ann")
    assert desk.ask("hand_back").ok
    session.planned()
    assert session.mode is Mode.AUTO


def test_a_fault_while_weights_are_stale_waits_for_a_person():
    desk = Desk().until(Mode.AUTO)
    session = desk.session
    session.stale = "old"
    desk.pass_ms(1)
    desk.fault = "torn cable"
    desk.see()
    session.stale = ""
    desk.pass_ms(1)
    assert session.mode is Mode.FAULT


def test_nothing_moves_before_a_token_was_granted():
    clock = ManualClock()
    session = Session("arm", SessionConfig(), Leases(clock), clock, "boot")
    session.worker_ready()
    session.seen(Telemetry(Reading({}, np.zeros(2), 0, 0), np.zeros(2), "b"))
    session.tick()
    assert not [e for e in session.effects if isinstance(e, do.Want)]


@pytest.mark.parametrize(
    ("segment", "ends"),
    [(Segment.AUTO, True), (Segment.DEMO, True), (Segment.RECOVERY, False), (Segment.HOLD, False)],
)
def test_time_limits_do_not_hurry_a_person(segment, ends):
    from user_system.edge.episode import Episode

    episode = Episode(Assignment("arm", Purpose.TRAIN, "t", 1, "e", max_steps=5), clock=5)
    late = Judgement(0.0, timeout=True, success=False)
    assert (episode.ended_by(late, segment) == (End.TIMEOUT, False)) is ends
    assert (episode.ended_by(Judgement(0.0), segment) == (End.TIMEOUT, False)) is ends


# --- people -------------------------------------------------------------------------------------


def test_only_the_holder_is_obeyed():
    desk = Desk().until(Mode.AUTO)
    for who, token in (("ann", None), ("bob", None), ("", None)):
        answer = desk.ask("hold", who, token)
        assert not answer.ok
        assert "lease" in answer.error
    token = desk.grant("ann")
    assert not desk.ask("hold", "bob").ok
    assert not desk.ask("hold", "ann", token - 1).ok
    assert desk.session.mode is Mode.AUTO
    assert desk.ask("hold").ok
    assert desk.session.mode is Mode.HOLD


@pytest.mark.parametrize("handback_ends", [False, True])
def test_recovery_correction_and_hand_back(handback_ends):
    desk = Desk(handback_ends=handback_ends).until(Mode.AUTO)
    session = desk.session
    desk.grant("ann")
    for event, mode in (("hold", "hold"), ("recover", "recovery"), ("correct", "correction")):
        assert desk.ask(event).mode == mode
    assert session.operator == "ann"
    assert desk.ask("hand_back").ok
    if handback_ends:
        assert session.mode is Mode.HOLD
        (finish,) = desk.took(do.Finish)
        assert (finish.end, finish.takeovers) == (End.HANDBACK, 1)
    else:
        assert session.mode is Mode.HANDBACK
        assert desk.took(do.Replan)
        session.planned()
        assert session.mode is Mode.AUTO
        assert session.takeovers == 1


def test_an_evaluation_with_help_is_none():
    desk = Desk().until(Mode.EVAL, Purpose.EVAL)
    desk.grant("ann")
    assert desk.ask("hold").ok
    assert desk.took(do.Finish)[0].end is End.ABORT
    desk.pass_ms(10_000)
    assert desk.session.mode is Mode.HOLD
    assert not desk.session.recording


def test_a_person_judges_an_episode():
    desk = Desk().until(Mode.AUTO)
    desk.grant("ann")
    assert desk.ask("done", success=True).ok
    (finish,) = desk.took(do.Finish)
    assert (finish.end, finish.success, finish.reward) == (End.TERMINATED, True, 1.0)


@pytest.mark.parametrize("first", [True, False])
def test_a_silent_person_is_lost_and_not_replaced_by_the_policy(first):
    desk = Desk().until(Mode.AUTO)
    desk.grant("ann")
    desk.ask("hold")
    desk.ask("recover")
    if not first:
        desk.pass_ms(100)
        assert desk.steer(1)
    desk.pass_ms(2900 if first else 490)
    assert desk.session.mode is Mode.RECOVERY
    desk.pass_ms(150 if first else 20)
    assert desk.session.mode is Mode.HOLD
    assert "ann fell silent" in desk.session.help
    desk.grant()
    desk.pass_ms(100_000)
    assert desk.session.mode is Mode.HOLD
    assert desk.session.recording


def test_a_lease_that_runs_out_while_driving():
    desk = Desk(operator_lost_ms=1e9, operator_first_ms=1e9).until(Mode.DEMO, Purpose.COLLECT)
    desk.pass_ms(59_000)
    assert desk.session.mode is Mode.DEMO
    desk.pass_ms(2_000)
    assert desk.session.mode is Mode.HOLD
    assert "ran out" in desk.session.help


def test_a_lease_taken_by_somebody_else_while_driving():
    desk = Desk().until(Mode.DEMO, Purpose.COLLECT)
    desk.grant("chief")
    assert desk.session.mode is Mode.HOLD
    assert not desk.ask("demonstrate", "ann").ok
    assert desk.ask("demonstrate", "chief").ok


def test_commands_of_others_of_the_past_and_doubled_ones_do_not_count():
    desk = Desk().until(Mode.DEMO, Purpose.COLLECT)
    assert desk.steer(5)
    assert not desk.steer(5)
    assert not desk.steer(4)
    with pytest.raises(LeaseError):
        desk.steer(6, "bob")
    with pytest.raises(LeaseError, match="another life"):
        desk.steer(6, boot="old")
    desk.ask("hold")
    assert not desk.steer(7)


def test_demonstrations_only_when_due():
    desk = Desk().until(Mode.AUTO)
    desk.grant("ann")
    desk.ask("hold")
    answer = desk.ask("demonstrate")
    assert not answer.ok
    assert "no demonstration is due" in answer.error


def test_an_old_grant_changes_nothing():
    desk = Desk()
    desk.grant("ann")
    assert not desk.session.leases.grant(Grant("arm", 1, "bob", 1000))
    assert desk.session.leases.holder == "ann"
    assert desk.session.leases.stale == 1


def test_tokens_outlive_the_agent():
    kept = {}
    clock = ManualClock()
    leases = Leases(clock, kept, kept.update)
    leases.grant(Grant("arm", 41, "ann", 1000))
    assert Leases(clock, kept).token == 41


def test_the_clock_drops_to_real_time_for_a_person():
    desk = Desk(rate=10.0).until(Mode.AUTO)
    assert [p.rate for p in desk.took(do.Pace)] == [10.0]
    desk.grant("ann", realtime=True)
    desk.pass_ms(1)
    assert desk.took(do.Pace)[-1].rate == 1.0
    desk.grant()
    desk.pass_ms(1)
    assert desk.took(do.Pace)[-1].rate == 10.0


def test_the_next_episode_is_asked_for_at_once_however_short_the_last_one_was():
    desk = Desk().until(Mode.AUTO)
    desk.session.judge(0, Judgement(1.0, terminated=True, success=True))
    desk.pass_ms(1)
    assert len(desk.took(do.Want)) == 2
    desk.pass_ms(1)
    assert len(desk.took(do.Want)) == 2, "and then only now and then"


def test_a_fast_clock_rests_while_there_is_nothing_to_do():
    desk = Desk(rate=10.0, idle_ms=200.0).until(Mode.AUTO)
    desk.session.judge(0, Judgement(1.0, terminated=True, success=True))
    desk.pass_ms(199)
    assert desk.took(do.Pace)[-1].rate == 10.0, "the next episode usually comes at once"
    desk.pass_ms(2)
    assert (desk.session.mode, desk.took(do.Pace)[-1].rate) == (Mode.HOLD, 1.0)
    desk.assign()
    desk.pass_ms(1)
    assert desk.took(do.Pace)[-1].rate == 10.0


# --- stops, faults, failures --------------------------------------------------------------------


@pytest.mark.parametrize("event", ["fault", "estop", "driver"])
def test_only_a_persons_release_clears_a_stop(event):
    desk = Desk().until(Mode.AUTO)
    if event == "estop":
        assert desk.ask("estop", "stranger", 0).ok
        assert desk.took(do.Stop)
    elif event == "fault":
        desk.fault = "torn cable"
        desk.see()
    else:
        desk.session.driver_lost("the driver is away")
        desk.hands()
        desk.fault = "the driver was restarted"
        desk.see()
    stopped = desk.session.mode
    assert stopped in STOPPED_MODES
    assert desk.took(do.Finish)[0].end is (End.ABORT if event == "estop" else End.FAULT)
    desk.pass_ms(1_000_000)
    desk.see()
    desk.grant("ann")
    for other in ("hold", "hand_back", "recover", "reset", "run", "done", "demonstrate"):
        assert not desk.ask(other).ok
    assert desk.session.mode is stopped
    assert desk.ask("release").ok
    desk.see()
    assert desk.session.mode is Mode.HOLD
    # A release does not restart motion.
    desk.pass_ms(100_000)
    assert desk.session.mode is Mode.HOLD
    desk.grant("ann")
    assert desk.ask("hand_back").ok
    wants = len(desk.took(do.Want))
    desk.pass_ms(5_000)
    assert len(desk.took(do.Want)) == wants + 1


def test_a_fault_from_before_the_release_does_not_count():
    desk = Desk().until(Mode.AUTO)
    desk.fault = "torn cable"
    desk.see()
    desk.grant("ann")
    session = desk.session
    assert session.request(Request("arm", "release", "ann", desk.token)).ok
    session.effects.clear()
    session.released_as(7)
    desk.see()
    assert session.mode is Mode.HOLD
    desk.released = 7
    desk.see()
    assert session.mode is Mode.FAULT  # it is still there afterwards


def test_a_release_without_effect_is_a_fault_again():
    desk = Desk().until(Mode.AUTO)
    desk.fault = "torn cable"
    desk.see()
    desk.grant("ann", ttl_ms=10**6)
    assert desk.session.request(Request("arm", "release", "ann", desk.token)).ok
    desk.session.effects.clear()
    desk.session.released_as(7)
    desk.pass_ms(6_000)
    assert desk.session.mode is Mode.FAULT


def test_a_dead_worker_ends_the_episode_and_the_next_is_tried():
    desk = Desk().until(Mode.AUTO)
    session = desk.session
    session.worker_lost("the worker of 'p' died")
    assert session.mode is Mode.HOLD
    assert "'p'" in session.help
    desk.pass_ms(60_000)
    assert session.recording
    session.worker_ready()
    desk.pass_ms(1)
    assert desk.took(do.Finish)[0].end is End.ABORT
    desk.pass_ms(1)
    assert desk.took(do.Want)


def test_a_plugin_that_keeps_failing_waits_for_a_person():
    desk = Desk(plugin_failures=2).until(Mode.AUTO)
    session = desk.session
    session.plugin_failed("plugin 'p' could not act")
    desk.pass_ms(2_000)
    desk.assign()
    desk.pass_ms(1)
    assert session.mode is Mode.RESET
    session.plugin_failed("plugin 'p' could not reset")
    assert "2 failures in a row" in session.help
    desk.pass_ms(100_000)
    assert session.mode is Mode.HOLD
    desk.grant("ann")
    assert desk.ask("hand_back").ok
    desk.pass_ms(1)
    assert not session.paused


def test_a_person_may_drive_while_the_plugin_is_dead():
    desk = Desk().until(Mode.AUTO)
    desk.session.worker_lost("dead")
    desk.grant("ann")
    assert desk.ask("recover").ok
    desk.session.worker_ready()
    desk.pass_ms(1)
    assert desk.session.mode is Mode.RECOVERY
    assert not desk.session.judged
    assert desk.ask("hand_back").ok
    assert desk.took(do.Finish)[0].end is End.HANDBACK


def test_a_full_spool_lets_the_episode_end_and_begins_no_other():
    desk = Desk().until(Mode.AUTO)
    session = desk.session
    session.spool_full(True)
    desk.pass_ms(1)
    assert session.mode is Mode.AUTO
    session.judge(0, Judgement(0.0, timeout=True))
    desk.hands()
    wants = len(desk.took(do.Want))
    desk.pass_ms(100_000)
    assert len(desk.took(do.Want)) == wants
    assert "spool is full" in session.help
    session.spool_full(False)
    desk.pass_ms(1)
    assert len(desk.took(do.Want)) == wants + 1
    assert session.help == ""


def test_a_failing_disk_aborts_and_waits_for_a_person():
    desk = Desk().until(Mode.AUTO)
    desk.session.store_failed("no space")
    assert not desk.session.recording
    desk.pass_ms(100_000)
    assert desk.session.mode is Mode.HOLD
    assert "no space" in desk.session.help


# --- every order of events ----------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens, in whatever order: what must never happen does not."""

    @initialize()
    def begin(self):
        self.desk = Desk(rate=2.0)
        self.session = self.desk.session
        self.before = self.session.mode
        self.free = False
        """Whether a change from a stopped mode was asked for by the holder."""
        self.handed_back = True

    def act(self, call: Callable[[], object], *, release=False, hand_back=False) -> None:
        before, paused = self.session.mode, self.session.paused
        call()
        self.desk.hands()
        after = self.session.mode
        if before in STOPPED_MODES and after not in STOPPED_MODES:
            assert release
        if before in HUMAN_MODES and after in POLICY_MODES | {Mode.HANDBACK}:
            assert hand_back
        if before is Mode.HOLD and after in POLICY_MODES | {Mode.RESET}:
            assert not paused
            assert not self.desk.fault
        if after is not before:
            assert reachable(before, after)

    @rule(
        event=st.sampled_from([str(event) for event in Event]),
        who=st.sampled_from(["ann", "bob", ""]),
        success=st.sampled_from([None, True, False]),
    )
    def ask(self, event, who, success):
        self.act(
            lambda: self.desk.ask(event, who, success=success),
            release=event == "release" and who == self.session.leases.holder != "",
            hand_back=event == "hand_back" and who == self.session.leases.holder != "",
        )

    @rule(holder=st.sampled_from(["ann", "bob", ""]), ttl=st.sampled_from([10, 60_000]))
    def grant(self, holder, ttl):
        self.act(lambda: self.desk.grant(holder, ttl))

    @rule(ms=st.sampled_from([0, 1, 50, 600, 4000, 20_000]))
    def wait(self, ms):
        self.act(lambda: self.desk.pass_ms(ms))

    @rule(fault=st.sampled_from(["", "", "torn cable"]))
    def see(self, fault):
        self.desk.fault = fault or self.desk.fault
        self.act(self.desk.see)

    @rule(stale=st.sampled_from(["", "old"]))
    def age(self, stale):
        self.session.stale = stale

    @rule(purpose=st.sampled_from(list(Purpose)))
    def assign(self, purpose):
        self.act(lambda: self.desk.assign(purpose, max_steps=3))

    @rule()
    def begun(self):
        self.act(lambda: self.session.begun(ResetPlan(((0.0,),), {})))
        self.act(self.session.reset_reached)

    @rule(terminated=st.booleans(), timeout=st.booleans())
    def judge(self, terminated, timeout):
        self.session.counted(self.session.segment)
        self.act(lambda: self.session.judge(0, Judgement(0.0, terminated, timeout)))

    @rule(what=st.sampled_from(["ready", "lost", "failed", "reset_failed", "store", "driver"]))
    def trouble(self, what):
        session = self.session
        calls = {
            "ready": session.worker_ready,
            "lost": lambda: session.worker_lost("lost"),
            "failed": lambda: session.plugin_failed("failed"),
            "reset_failed": lambda: session.reset_failed("stuck"),
            "store": lambda: session.store_failed("disk"),
            "driver": lambda: session.driver_lost("gone"),
        }
        self.act(calls[what])

    @rule()
    def rewound(self):
        self.act(self.session.rewound)

    @rule()
    @precondition(lambda self: self.session.mode is Mode.HANDBACK)
    def planned(self):
        self.act(self.session.planned)

    @invariant()
    def consistent(self):
        if not hasattr(self, "session"):
            return
        session = self.session
        assert not session.effects
        if session.mode in POLICY_MODES:
            assert session.recording
        if session.mode in STOPPED_MODES:
            assert not session.recording
            assert session.help
        if session.mode is Mode.RESET:
            assert session.assignment is not None
        if session.wants_plan:
            assert session.judged
        starts = len(self.desk.took(do.Begin))
        ends = self.desk.took(do.Finish)
        assert sum(f.recorded for f in ends) <= starts
        assert len({f.assignment.episode for f in ends}) == len(ends)


def reachable(before: Mode, after: Mode) -> bool:
    """Whether a few rows of the table lead from one mode to another; one call may take several."""
    known, edge = {before}, {before}
    for _ in range(3):
        edge = {to for (mode, _), (to, _) in TABLE.items() if mode in edge}
        known |= edge
    return after in known


AnyOrder.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow]
)
TestAnyOrder = AnyOrder.TestCase


# --- a line that stalls ---------------------------------------------------------------------------


def test_commands_that_a_stalled_line_delivers_late_move_nothing():
    desk = Desk().until(Mode.DEMO, Purpose.COLLECT)
    assert desk.steer(1, age_ms=150.0)
    assert desk.steer(2, age_ms=300.0)  # a little later than usual
    for sequence, age_ms in enumerate((360.0, 900.0, 5000.0, -100.0), start=3):
        with pytest.raises(LinkError, match="not of now"):
            desk.steer(sequence, age_ms=age_ms)
    assert desk.session.freshness.stale == 4
    assert desk.steer(7, age_ms=170.0)


def test_the_first_command_of_all_must_be_of_now_too():
    desk = Desk().until(Mode.DEMO, Purpose.COLLECT)
    with pytest.raises(LinkError):
        desk.steer(1, age_ms=1200.0)


def test_a_way_that_became_longer_for_good_can_be_driven_over():
    desk = Desk().until(Mode.DEMO, Purpose.COLLECT)
    assert desk.steer(1, age_ms=20.0)
    late = 0
    for sequence in range(2, 200):
        try:
            desk.steer(sequence, age_ms=400.0)
        except LinkError:
            late += 1
    assert late == 99
    assert desk.steer(200, age_ms=400.0)


def test_late_commands_do_not_count_as_a_persons_presence():
    desk = Desk().until(Mode.DEMO, Purpose.COLLECT)
    desk.pass_ms(10)
    assert desk.steer(1)
    for sequence in range(2, 12):
        desk.clock.now += 100 * MS
        with pytest.raises(LinkError):
            desk.steer(sequence, age_ms=2000.0)
        desk.session.tick()
    assert desk.session.mode is Mode.HOLD


# --- a new life of the agent ----------------------------------------------------------------------


def _again(desk: Desk, facts: dict) -> Desk:
    """Return a desk whose agent was restarted beside the same driver."""
    new = Desk()
    new.session = Session(
        "arm",
        SessionConfig(),
        Leases(desk.clock, {"token": desk.token}),
        desk.clock,
        "boot2",
        facts,
    )
    new.clock, new.fault, new.token = desk.clock, desk.fault, desk.token
    new.grant()
    return new


def _remembering(desk: Desk) -> dict:
    facts: dict = {}
    desk.session._remember = facts.update
    return facts


def test_an_emergency_stop_is_one_for_a_new_agent_too():
    desk = Desk().until(Mode.AUTO)
    desk.ask("estop", "eve")
    new = _again(desk, {})
    new.see()
    assert new.session.mode is Mode.ESTOP


def test_a_new_agent_waits_for_the_person_that_the_old_one_waited_for():
    desk = Desk().until(Mode.AUTO)
    facts = _remembering(desk)
    desk.grant("ann")
    assert desk.ask("hold").ok
    new = _again(desk, facts)
    assert new.session.left_by == "ann"
    new.session.worker_ready()
    new.see()
    new.pass_ms(1)
    assert not new.took(do.Want)
    new.grant("ann")
    assert new.ask("hand_back").ok
    new.pass_ms(1)
    assert new.took(do.Want)
    assert new.session.left_by == ""


def test_a_stop_that_the_driver_never_heard_of_is_said_again():
    desk = Desk().until(Mode.AUTO)
    desk.session.estop("eve")
    desk.session.effects.clear()  # the ring was full, or the driver was just being restarted
    desk.see()
    assert desk.fault == ""  # it may be on its way
    desk.pass_ms(200)
    desk.see()
    assert desk.fault == "emergency stop by eve"


def test_a_request_that_comes_twice_is_carried_out_once():
    desk = Desk().until(Mode.AUTO)
    desk.grant("ann")
    desk.ask("estop")
    release = Request("arm", "release", "ann", desk.token, "r1")
    first = desk.session.request(release)
    desk.hands()
    assert first.ok
    desk.see()
    desk.ask("estop")
    assert desk.session.request(release) == first
    desk.hands()
    assert desk.session.mode is Mode.ESTOP


def test_who_left_a_robot_is_told_until_somebody_hands_it_back():
    desk = Desk().until(Mode.AUTO)
    desk.grant("ann")
    desk.ask("hold")
    desk.ask("correct")
    desk.grant()
    assert (desk.session.mode, desk.session.left_by) == (Mode.HOLD, "ann")
    desk.fault = "something broke"
    desk.see()
    assert (desk.session.mode, desk.session.left_by) == (Mode.FAULT, "ann")
    desk.grant("ben")
    desk.ask("release", "ben")
    assert desk.session.left_by == "ann"
    desk.ask("hand_back", "ben")
    assert desk.session.left_by == ""


def test_an_assignment_that_comes_again_when_its_episode_is_over_is_not_begun_again():
    """Two episodes under one id could not be told apart; the hub repeats what was asked twice."""
    desk = Desk().until(Mode.AUTO)
    desk.session.judge(0, Judgement(1.0, True, success=True))
    desk.hands()
    desk.session.assign(desk.took(do.Finish)[0].assignment)
    assert desk.session.assignment is None
    assert desk.assign().episode == desk.session.assignment.episode
