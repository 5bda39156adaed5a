"""The session of one robot: the only writer of its mode. Everybody else asks it and mirrors it.

Pure logic. What happened comes in as method calls, what is to be done goes out as ``effects``, time
is injected; so every order of events can be tried. The rules it keeps:

- A mode changes along ``core.modes.TABLE`` and not otherwise.
- Faults and stops end the episode and wait for a person: ``RELEASE`` leads to HOLD and no further.
- Where a person or a mishap held the robot, it goes on by itself only after ``HAND_BACK``
  (``paused``); that is remembered, for a restarted agent is nobody who handed back.
- A request that comes twice is carried out once: an old release must not undo a newer stop.
- A failed plugin ends its episode and the next one is tried; three in a row wait for a person.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from user_system.core.clock import MS, Clock
from user_system.core.errors import LeaseError, TransitionError, UserSystemError
from user_system.core.interfaces import Judgement, ResetPlan
from user_system.core.modes import (
    HUMAN_MODES,
    POLICY_MODES,
    SEGMENT,
    STOPPED_MODES,
    Event,
    Mode,
    Who,
    follow,
)
from user_system.core.types import End, Purpose, Segment
from user_system.edge.effects import Begin, Effect, Pace, Release, Replan, Stop, Want
from user_system.edge.episode import TIMED, Episode, demonstrate
from user_system.edge.freshness import Freshness
from user_system.edge.leases import Leases
from user_system.edge.messages import (
    Answer,
    Answers,
    Assignment,
    Grant,
    OperatorCommand,
    Request,
)
from user_system.edge.patience import SessionConfig
from user_system.edge.wire import Telemetry

log = logging.getLogger(__name__)

ESTOPPED = "emergency stop"
"""How the latched reason of an emergency stop begins, so that a new agent knows it from a fault."""

_REMEMBERED = 256
"""Episodes remembered, so that none is recorded twice under one id."""


class Session:
    """Mode, lease, episode and help text of one robot.

    Args:
        name: of the robot.
        config: patience.
        leases: tokens; remembered from earlier lives.
        wall: this host's clock.
        boot: id of this life of the agent.
        facts: what ``remember`` was given in an earlier life.
        remember: called when it begins or ceases to wait for a person.
    """

    def __init__(
        self,
        name: str,
        config: SessionConfig,
        leases: Leases,
        wall: Clock,
        boot: str,
        facts: Mapping[str, Any] | None = None,
        remember: Callable[[Mapping[str, Any]], None] = lambda _: None,
    ):
        self.name, self.config, self.boot = name, config, boot
        self.leases, self._wall, self._remember = leases, wall, remember
        known = facts or {}
        self.mode = Mode.HOLD
        self.help = str(known.get("help", ""))
        """What a person could do for this robot; empty where nothing."""
        self.fault = ""
        self.paused = bool(known.get("paused", False))
        """Whether it waits for a person to hand back before it goes on by itself."""
        self.left_by = str(known.get("left_by", ""))
        """Who held it before it was left waiting; empty where a mishap did."""
        self.finishing = False
        """Whether it begins nothing more: its host is about to restart."""
        self.unready = ""
        """Why the policy cannot begin: it is out of reach, other weights act; empty: it can."""
        self.slow = False
        """Whether plans come later than the step that asks: the first one is waited for at rest."""
        self._starving = ""
        self.stale, self._rests = "", False  # why weights are too old; holding for that alone
        self.effects: list[Effect] = []
        self.takeovers = 0
        self._episode: Episode | None = None
        self._taken: deque[str] = deque(maxlen=_REMEMBERED)
        self._worker = self._driver = self._full = False
        self._releasing: tuple[int, int] | None = None
        self._entered = self._heard = wall.now_ns()
        self._wanted = self._retry = float("-inf")
        self._failures, self._sequence, self._rate = 0, -1, 0.0
        self._why, self._stopped_ns = "", 0
        self._kept = (self.paused, self.left_by)
        self.freshness = Freshness()
        self._answers = Answers()

    # --- what it is ---------------------------------------------------------------------------

    @property
    def assignment(self) -> Assignment | None:
        """The episode at hand, if any."""
        return self._episode.assignment if self._episode else None

    @property
    def recording(self) -> bool:
        """Whether steps are part of an episode now."""
        return self._episode is not None and self._episode.running

    @property
    def at_rest(self) -> bool:
        """Whether nothing is lost where the agent ends now: it is still, and in no episode."""
        return not self.recording and self.mode in STOPPED_MODES | {Mode.HOLD}

    @property
    def judged(self) -> bool:
        """Whether the worker follows this episode: it may be asked for plans and judgements."""
        return self.recording and self._worker and not (self._episode and self._episode.orphan)

    @property
    def starving(self) -> bool:
        """Whether it holds because no plan came in time, and goes on with the next one."""
        return bool(self._starving) and self.judged and not self.paused

    @property
    def wants_plan(self) -> bool:
        """Whether the policy is asked, be it only to record what it would have done."""
        asks = self.mode in POLICY_MODES | HUMAN_MODES | {Mode.HANDBACK}
        return self.judged and (asks or self.starving)

    @property
    def segment(self) -> Segment:
        """What a step that begins now is."""
        return SEGMENT[self.mode]

    @property
    def operator(self) -> str:
        """Who drives now; empty where nobody does."""
        lease = self.leases.lease
        return lease.holder if lease and self.mode in HUMAN_MODES else ""

    def clock_of(self, segment: Segment) -> int:
        """Return the k that ``Task.judge`` gets for the step that ended in ``segment``."""
        clock = self._episode.clock if self._episode else 0
        return max(0, clock - 1) if segment in TIMED else clock

    @property
    def reset_plan(self) -> ResetPlan | None:
        """Where the robot is to go, in RESET."""
        return self._episode.plan if self._episode else None

    # --- robot --------------------------------------------------------------------------------

    def seen(self, seen: Telemetry) -> None:
        """Take note of the robot's state."""
        self._driver = True
        if self._releasing and seen.released >= self._releasing[0]:
            self._releasing = None
        if self._releasing:
            return  # from before the release
        self.fault = seen.reading.fault
        if self.fault and self.mode not in STOPPED_MODES:
            estop = self.fault.startswith(ESTOPPED)
            self._stopped(Event.ESTOP if estop else Event.FAULT, Who.DRIVER, self.fault)
        elif not self.fault and self.mode in STOPPED_MODES:
            self._stop_again()
        episode = self._episode
        if episode and episode.stage == "laying" and seen.scene >= episode.scene:
            episode.stage = "ready"
            if self.mode is Mode.RESET:
                self._go(Event.DONE, Who.SESSION)

    def driver_lost(self, why: str) -> None:
        """The driver died; its successor keeps the robot in FAULT until a person releases it."""
        self._driver, self._releasing, self._rate = False, None, 0.0
        if self.mode not in STOPPED_MODES:
            self._stopped(Event.FAULT, Who.SESSION, why)

    def _stopped(self, event: Event, who: Who, why: str) -> None:
        if self._episode is not None:
            end = End.FAULT if event is Event.FAULT else End.ABORT
            self.effects.append(self._episode.finish(end))
            self._episode = None
        self.left_by = self.operator or self.left_by
        self._go(event, who)
        self.fault, self.help = why, f"{why}. Make the robot safe, then release it."
        self.paused, self._why, self._stopped_ns = True, why, self._wall.now_ns()

    def _stop_again(self) -> None:
        """Say it again where the driver never heard of it: its ring was full, or it was new."""
        self.fault = self._why
        if self._wall.now_ns() - self._stopped_ns > self.config.stop_again_ms * MS:
            self._stopped_ns = self._wall.now_ns()
            self.effects.append(Stop(self._why))

    def released_as(self, number: int) -> None:
        """Wait for release ``number`` of the driver before its faults count again."""
        self._releasing = (number, self._wall.now_ns() + int(self.config.release_ms * MS))

    # --- people -------------------------------------------------------------------------------

    def request(self, request: Request) -> Answer:
        """Do what a person asks for, or say why not; the same id gets the same answer."""
        known = self._answers.of(request.id)
        if known is not None:
            return known
        error = ""
        try:
            self._asked(request)
        except (UserSystemError, ValueError) as refused:
            error = str(refused)
        self._keep()
        return self._answers.keep(Answer(request.id, self.name, not error, self.mode, error))

    def _keep(self) -> None:
        """Remember whether it waits for a person, and for whom."""
        if self._kept != (self.paused, self.left_by):
            self._kept = (self.paused, self.left_by)
            self._remember({"paused": self.paused, "left_by": self.left_by, "help": self.help})

    def _free(self) -> None:
        """Nobody is waited for any more."""
        self.paused, self.help, self.left_by = False, "", ""

    def _asked(self, request: Request) -> None:
        event = Event(request.event)
        if event is Event.ESTOP:
            return self.estop(request.operator)
        self.leases.check(request.operator, request.token)
        self._heard = self._wall.now_ns()
        match event:
            case Event.HOLD:
                self._take(request.operator)
            case Event.HAND_BACK:
                self._hand_back()
            case Event.DONE:
                self._judged_by_person(request)
            case Event.RESET:
                self._start_over()
            case Event.RELEASE:
                self._release()
            case Event.DEMONSTRATE | Event.RECOVER | Event.CORRECT | Event.REWIND:
                self._drive(event)
            case _:
                follow(self.mode, event, Who.OPERATOR)
        return None

    def estop(self, by: str) -> None:
        """Stop the robot now, whoever asks; latched."""
        why = f"{ESTOPPED} by {by or 'somebody'}"
        self.effects.append(Stop(why))
        self._stopped(Event.ESTOP, Who.ANYONE, why)

    def _take(self, operator: str) -> None:
        driven = self.starving or self.mode in POLICY_MODES
        if not self.starving:
            self._go(Event.HOLD, Who.OPERATOR)
        self.paused, self.left_by = True, operator
        self.help = f"Held by {operator}; hand back to let it go on."
        if driven:
            self.takeovers += 1
            if self._episode:
                self._episode.takeovers += 1
        if self.assignment and self.assignment.purpose is Purpose.EVAL and self.recording:
            self._end(End.ABORT)  # an evaluation with help is none

    def _hand_back(self) -> None:
        self._go(Event.HAND_BACK, Who.OPERATOR)
        self._failures = 0
        self._free()
        episode = self._episode
        goes_on = (
            episode is not None
            and self.judged
            and episode.assignment.purpose is Purpose.TRAIN
            and not self.config.handback_ends
        )
        if goes_on:
            self.effects.append(Replan())
        elif self.recording:
            self._end(End.HANDBACK)
        else:
            self._go(Event.HOLD, Who.SESSION)

    def _judged_by_person(self, request: Request) -> None:
        mode = follow(self.mode, Event.DONE, Who.OPERATOR)
        if not self.recording:
            self._enter(mode)
            return
        value = None if request.success is None else float(request.success)
        self._end(End.ABORT if request.success is None else End.TERMINATED, request.success, value)

    def _start_over(self) -> None:
        follow(self.mode, Event.RESET, Who.OPERATOR)
        if self.recording:
            self._end(End.ABORT)
        elif self._episode:
            self._episode.stage = "idle"
        self._free()

    def _release(self) -> None:
        if not self._driver:
            raise TransitionError("the driver is away", todo="Wait until it was restarted.")
        self._go(Event.RELEASE, Who.OPERATOR)
        self.fault, self.help = "", "Released; hand back to let it go on."
        self.effects.append(Release())

    def _drive(self, event: Event) -> None:
        mode = follow(self.mode, event, Who.OPERATOR)
        if event is Event.DEMONSTRATE:
            demonstrate(self._episode, self.mode)
        if event is Event.REWIND and not self.recording:
            raise TransitionError("there is no episode to rewind")
        self._enter(mode)
        self.help = ""
        self.left_by = self.leases.holder
        if event is not Event.REWIND:
            self.paused = True

    def command(self, command: OperatorCommand) -> bool:
        """Whether this command of a person counts: right person, right life, newer than the last.

        Raises:
            LeaseError: it is somebody else's, or from an earlier life of the agent.
            LinkError: it was under way for too long.
        """
        self.leases.check(command.operator, command.token)
        if command.boot != self.boot:
            raise LeaseError("a command for another life of the agent", got=command.boot)
        if command.sequence <= self._sequence:
            return False
        self._sequence = command.sequence
        self.freshness.check(command, self._wall.now_ns())
        self._heard = self._wall.now_ns()
        return self.mode in HUMAN_MODES

    def grant(self, grant: Grant) -> None:
        """Take over who may command; an older right than the one known changes nothing."""
        before = self.leases.lease
        if not self.leases.grant(grant):
            return
        after = self.leases.lease
        if (before and before.token) != (after and after.token):
            self._sequence = -1
            self.freshness.begin()
        driver = before.holder if before else ""
        if self.mode in HUMAN_MODES | {Mode.REWIND} and (after is None or after.holder != driver):
            self._lost(driver, f"{driver} gave the robot up without handing back")

    def _lost(self, who: str, why: str) -> None:
        self._go(Event.HOLD, Who.SESSION)
        self.left_by = who
        self.paused, self.help = True, f"{why}. Take over and hand back to let it go on."

    # --- episodes -----------------------------------------------------------------------------

    def assign(self, assignment: Assignment) -> None:
        """Take the next episode; the one at hand goes first, a repeated one changes nothing.

        An assignment may come twice, the second time when its episode is over already; an id is
        recorded under once.
        """
        if self._episode is None and assignment.episode not in self._taken:
            self._taken.append(assignment.episode)
            self._episode = Episode(assignment)
            self._wanted = float("-inf")  # the next is asked for as soon as this one is over

    def begun(self, plan: ResetPlan) -> None:
        """The worker is ready for the episode and says how it begins."""
        if self._episode and self._episode.stage == "resetting":
            self._episode.plan = plan

    def reset_reached(self) -> None:
        """The robot went through the waypoints of the reset."""
        if self._episode and self._episode.plan and self.mode is Mode.RESET:
            if (scene := self._episode.reached()) is not None:
                self.effects.append(scene)
            else:
                self._go(Event.DONE, Who.SESSION)

    def scene_as(self, number: int) -> None:
        """Wait for scene ``number`` of the driver."""
        if self._episode:
            self._episode.scene = number

    def reset_failed(self, why: str) -> None:
        """The start of the episode could not be brought about."""
        if self.mode is Mode.RESET:
            self._go(Event.HOLD, Who.SESSION)
        if self._episode and not self.recording:
            self._episode.stage, self._episode.plan = "idle", None
        self.paused, self.help = True, f"{why}. Clear the way, then hand back to try again."

    def counted(self, segment: Segment) -> None:
        """A step was made; time runs only while policy or demonstrator act."""
        if self._episode and segment in TIMED:
            self._episode.clock += 1

    def judge(self, step: int, judgement: Judgement) -> None:
        """Take a judgement of step ``step``; it may end the episode."""
        if not self.recording or self._episode is None:
            return
        self._failures = 0
        ended = self._episode.ended_by(judgement, self.segment)
        if ended is not None:
            self._end(*ended, index=step)

    def planned(self) -> None:
        """A fresh plan is there."""
        if self.mode is Mode.HANDBACK:
            self._go(Event.DONE, Who.SESSION)
        elif self.starving and self._episode:
            self._let_act(self._episode)

    def starved(self, why: str) -> None:
        """No plan came in time: be still until one does, and ask for help if that takes long."""
        if self.mode in POLICY_MODES:
            self._go(Event.HOLD, Who.SESSION)
            self._starving = why

    def rewound(self) -> None:
        """The rewind came to its end."""
        if self.mode is Mode.REWIND:
            self._go(Event.DONE, Who.SESSION)
            self.paused, self.help = True, "Rewound; correct it or hand back."

    def _end(
        self,
        end: End,
        success: bool | None = None,
        reward: float | None = None,
        index: int | None = None,
    ) -> None:
        if self._episode is not None:
            self.effects.append(self._episode.finish(end, success, reward, index))
            self._episode = None
        if self.mode in {Mode.REWIND, Mode.HANDBACK}:
            self._go(Event.HOLD, Who.SESSION)
        elif self.mode is not Mode.HOLD:
            self._go(Event.DONE, Who.SESSION)
            self._free()

    # --- plugins, spool, time -----------------------------------------------------------------

    def worker_ready(self) -> None:
        """The worker answers."""
        self._worker = True

    def worker_lost(self, why: str) -> None:
        """The worker died or hangs; ``why`` names the plugin."""
        self._worker = False
        self.plugin_failed(why)

    def plugin_failed(self, why: str) -> None:
        """Code of a plugin raised, hung or answered nonsense: be still, try again later."""
        self._retry = self._wall.now_ns() + self.config.plugin_retry_ms * MS
        self._failures += 1
        episode = self._episode
        if episode is None:
            return self._ask_about_plugin(why)
        episode.orphan = True
        if self.mode in POLICY_MODES | {Mode.RESET, Mode.HANDBACK}:
            self._go(Event.HOLD, Who.SESSION)
        if self.mode not in HUMAN_MODES | STOPPED_MODES:
            self._ask_about_plugin(why)
        return None

    def trouble(self, why: str) -> None:
        """Pass on what a process said before it died, where nobody else asks for help."""
        if not self._worker and self.mode is Mode.HOLD and not self.paused:
            self.help = why

    def _ask_about_plugin(self, why: str) -> None:
        self.help = why
        if self._failures >= self.config.plugin_failures:
            self.paused = True
            self.help = f"{why}. {self._failures} failures in a row: mend it, then hand back."

    def spool_full(self, full: bool) -> None:
        """Whether the disk takes no more: the episode is finished, the next one waits."""
        self._full = full

    def store_failed(self, why: str) -> None:
        """The disk took no fragment: end the episode, be still and wait for a person."""
        if self.recording:
            self._end(End.ABORT)
        self.wait_for_person(why)

    def wait_for_person(self, why: str) -> None:
        """Begin nothing more until a person hands back."""
        self.paused, self.help = True, f"{why}. See to it, then hand back to let it go on."

    def tick(self) -> None:
        """Let time pass: leases, silence, patience, and what the session does by itself."""
        now = self._wall.now_ns()
        self._watch_people(now)
        if self._releasing and now > self._releasing[1]:
            self._releasing = None
            if self.mode not in STOPPED_MODES:
                self._stopped(Event.FAULT, Who.SESSION, "the release did not clear the fault")
        self._keep_pace(now)
        self._keep()
        if self.stale and self.mode is Mode.AUTO:
            self._go(Event.HOLD, Who.SESSION)
            self._rests, self.help = True, self.stale
        left = not self.leases.holder and now - self._entered > self.config.left_ms * MS
        if self.mode is Mode.HOLD and not self.paused:
            self._go_on(now)
        elif self.mode is Mode.HOLD and self.finishing and self.recording and left:
            self._end(End.ABORT)  # who comes back to the robot finds the next episode

    def _watch_people(self, now: int) -> None:
        holder = self.leases.holder
        if self.leases.expire() and self.mode in HUMAN_MODES | {Mode.REWIND}:
            self._lost(holder, f"the lease of {holder} ran out")
        elif self.mode in HUMAN_MODES:
            silence = (now - max(self._heard, self._entered)) / MS
            if silence > self.config.silence_ms(first=self._heard <= self._entered):
                self._lost(holder, f"{holder} fell silent")

    def _keep_pace(self, now: int) -> None:
        idle = self.mode is Mode.HOLD and self._episode is None
        waits = idle and now - self._entered > self.config.idle_ms * MS
        rate = self.config.pace(slow=waits or bool((e := self.leases.lease) and e.realtime))
        if self._driver and rate != self._rate:
            self._rate = rate
            self.effects.append(Pace(rate))

    def _go_on(self, now: int) -> None:
        """At rest and free: take the next step of the schedule."""
        episode = self._episode
        if not self._driver or self.fault or self._releasing or not self.leases.token:
            return
        if not self._worker or now < self._retry:
            return
        if episode is not None and episode.orphan:
            self._end(End.ABORT)
        elif self.starving and now - self._entered > self.config.starved_ms * MS:
            self.plugin_failed(self._starving)
        elif self.finishing:
            return
        elif episode is None:
            self._want(now)
        elif episode.stage == "idle":
            self.help = ""
            self._go(Event.RESET, Who.SESSION)
            episode.start()
            self.effects.append(Begin(episode.assignment))
        elif episode.stage == "ready":
            self._run(episode)
        elif self._rests and not self.stale:
            self.effects.append(Replan())
            self._let_act(episode)

    def _want(self, now: int) -> None:
        if self._full:
            self.help = "The spool is full: the head takes no experience. See to link and disk."
        elif now - self._wanted > self.config.want_ms * MS:
            self.help, self._wanted = "", now
            self.effects.append(Want())

    def _run(self, episode: Episode) -> None:
        self.help = episode.waits_for(self.unready)
        if not self.help:
            episode.stage = "running"
            if self.slow:
                self._starving = "The first plan did not come"
            else:
                self._let_act(episode)

    def _let_act(self, episode: Episode) -> None:
        train = episode.assignment.purpose is Purpose.TRAIN
        self.help = ""
        self._go(Event.RUN if train else Event.EVALUATE, Who.SESSION)

    def _go(self, event: Event, who: Who) -> None:
        self._enter(follow(self.mode, event, who))

    def _enter(self, mode: Mode) -> None:
        if mode is not self.mode:
            log.info("%s: %s -> %s", self.name, self.mode, mode)
            self._rests = False
        if self.mode is Mode.RESET and self._episode:
            self._episode.interrupt()
        self.mode, self._entered, self._starving = mode, self._wall.now_ns(), ""
