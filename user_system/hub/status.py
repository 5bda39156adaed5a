"""What the system looks like now, gathered from everybody's last word."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from comms.pb import fresh_pb2, hub_pb2
from user_system.core.clock import SECOND, Clock
from user_system.core.errors import SpecError
from user_system.core.schedule import Evaluation
from user_system.hub.leases import Leases
from user_system.hub.registry import RobotRecord

_CURVE_POINTS = 300
_PROCESSES = 256
"""Processes remembered; the one not heard of for longest goes first."""
_FIGURES, _TEXT = 512, 500
"""Figures of one process, and characters of a text."""
_FORGET_S = 60.0
"""A process that was silent for so long is left out: it was replaced or is gone."""


@dataclass(frozen=True, slots=True)
class _Heard:
    report: hub_pb2.ProcessReport
    at_ns: int


class Board:
    """Last words of robots and processes. Thread-safe; memory only."""

    def __init__(self, clock: Clock):
        self._clock = clock
        self._lock = threading.Lock()
        self._states: dict[str, fresh_pb2.RobotState] = {}
        self._reports: dict[str, _Heard] = {}

    def mirrored(self, state: fresh_pb2.RobotState) -> None:
        """Note what a robot's session says of itself."""
        with self._lock:
            self._states[state.robot] = state

    def progress(self, robot: str) -> tuple[str, int]:
        """Return (episode, steps) as the robot last said; ("", 0): it has none."""
        with self._lock:
            state = self._states.get(robot)
        return (state.episode, state.step) if state is not None else ("", 0)

    def reported(self, report: hub_pb2.ProcessReport) -> None:
        """Note what a process says of itself.

        Raises:
            SpecError: it says more than anybody could read.
        """
        longest = max(map(len, (report.name, report.kind, report.note, *report.figures)))
        if len(report.figures) > _FIGURES or longest > _TEXT:
            got = f"{len(report.figures)} figures, the longest text of {longest}"
            raise SpecError("report of a process is too large", got=got, allowed=_FIGURES)
        with self._lock:
            self._reports.pop(report.name, None)
            self._reports[report.name] = _Heard(report, self._clock.now_ns())
            while len(self._reports) > _PROCESSES:
                del self._reports[next(iter(self._reports))]

    def robots(self, records: Iterable[RobotRecord], leases: Leases) -> list[hub_pb2.RobotStatus]:
        """Return the status of each robot."""
        now = self._clock.now_ns()
        return [self._robot(record, leases, now) for record in records]

    def processes(self) -> list[hub_pb2.ProcessReport]:
        """Return the last report of each process that is still there, by name."""
        now = self._clock.now_ns()
        with self._lock:
            heard = [self._reports[name] for name in sorted(self._reports)]
        fresh = [h for h in heard if now - h.at_ns < _FORGET_S * SECOND]
        return [_aged(h.report, (now - h.at_ns) / SECOND) for h in fresh]

    def figures(self, run: dict[str, float], staleness_s: float) -> dict[str, float]:
        """Return the run's figures with the learner's; the run's own win where names collide."""
        learner = [r for r in self.processes() if r.kind == "learner"]
        merged: dict[str, float] = {}
        for report in learner:
            merged |= dict(report.figures)
        return {**merged, "weights_age_s": staleness_s, **run}

    def _robot(self, record: RobotRecord, leases: Leases, now: int) -> hub_pb2.RobotStatus:
        with self._lock:
            state = self._states.get(record.name, fresh_pb2.RobotState())
        figures = dict(state.figures) | {"rate": state.rate, "step": float(state.step)}
        return hub_pb2.RobotStatus(
            name=record.name,
            host=record.host,
            kind=record.spec.kind,
            online=record.online,
            mode=state.mode,
            holder=leases.holder(record.name),
            help=state.help or state.fault,
            version=state.version,
            last_seen_s=record.last_seen_s(now),
            figures=figures,
            spec=record.spec,
            task=record.task,
            policy=record.policy,
        )


def evaluations(sets: Sequence[Evaluation]) -> list[hub_pb2.Evaluation]:
    """Return evaluation sets as they travel."""
    return [
        hub_pb2.Evaluation(
            version=e.version,
            episodes=e.episodes,
            successes=e.successes,
            env_steps=e.env_steps,
            wall_s=e.wall_s,
        )
        for e in sets
    ]


def curve(points: Sequence[tuple[int, float, float]]) -> list[hub_pb2.CurvePoint]:
    """Return the learning curve thinned out to a few hundred points, the last one included."""
    step = max(1, -(-len(points) // _CURVE_POINTS))
    chosen = list(reversed(points[::-1][::step]))
    return [
        hub_pb2.CurvePoint(env_steps=steps, success_rate=success, intervention_rate=help_)
        for steps, success, help_ in chosen
    ]


def _aged(report: hub_pb2.ProcessReport, age_s: float) -> hub_pb2.ProcessReport:
    copy = hub_pb2.ProcessReport()
    copy.CopyFrom(report)
    copy.figures["age_s"] = age_s
    return copy
