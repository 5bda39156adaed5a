"""The run's schedule where it cannot be lost: every decision is on disk before it leaves the hub.

``user_system/core/schedule.py`` decides; this module remembers. Beside the state there is a journal
with one line per reported episode, from which the learning curve is drawn.
"""

import json
import math
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from user_system.core.clock import SECOND, Clock
from user_system.core.durable import read_json, write_json
from user_system.core.schedule import Assignment, EpisodeResult, Evaluation, Phase, Schedule
from user_system.core.schedule import ScheduleConfig as ScheduleConfig

_CURVE = 2000
"""Points of the learning curve kept in memory."""


class Book:
    """A schedule that survives its process. Thread-safe.

    Args:
        directory: holds ``schedule.json`` and ``episodes.jsonl``.
        config: the rule of the run.
        clock: wall clock; the run's time goes on where the last process left it.
    """

    def __init__(self, directory: Path, config: ScheduleConfig, clock: Clock):
        self._state_path = directory / "schedule.json"
        self._journal_path = directory / "episodes.jsonl"
        self._clock, self._schedule = clock, Schedule(config)
        self._lock = threading.Lock()
        self.behind_steps = math.inf
        """Steps not yet learned from, as the learner last said; unknown is as good as many."""
        self._elapsed_before = 0.0
        self._opened_ns = clock.now_ns()
        self._curve: deque[tuple[int, float, float]] = deque(maxlen=_CURVE)
        self._doubled = 0
        self._boots: dict[str, str] = {}
        self._busy: frozenset[str] = frozenset()

    def open(self) -> None:
        """Go on from the last decision; assignments that were open are given out again."""
        self._opened_ns = self._clock.now_ns()
        self._journal_path.parent.mkdir(parents=True, exist_ok=True)
        state = read_json(self._state_path)
        if state is not None:
            self._elapsed_before = float(state["elapsed_s"])
            self._boots = dict(state["boots"])
            self._schedule.load_state_dict(state["schedule"])
            self._note_busy(state["schedule"])
            _end_last_line(self._journal_path)
            self._curve.extend(_read_curve(self._journal_path))

    def next(self, robot: str, version: int) -> Assignment | None:
        """Return what ``robot`` is to do next; None: nothing now, ask again after a report.

        Args:
            robot: who asks.
            version: the newest weights there are, 0 before any.
        """
        with self._lock:
            before = self._schedule.state_dict()
            assignment = self._schedule.next(robot, version, self.behind_steps)
            if self._schedule.state_dict() != before:
                self._save()
            return assignment

    def report(self, result: EpisodeResult) -> bool:
        """Take note of an episode; False: it was noted before. On disk when this returns."""
        with self._lock:
            if not self._schedule.report(result, self.elapsed_s):
                self._doubled += 1
                return False
            point = (
                self._schedule.env_steps,
                self._schedule.unaided_rate,
                self._schedule.intervention_rate,
            )
            self._curve.append(point)
            self._journal(result, point)
            self._save()
            return True

    def born(self, robot: str, boot: str, progress: tuple[str, int] = ("", 0)) -> bool:
        """Note which life of a robot's agent this is; True: a new one.

        An agent that only lost its line goes on with its episode. One that was started anew has
        lost it, and must not record another one under the same id.

        Args:
            robot: its name.
            boot: id of this life.
            progress: (episode, steps) as its last life said.
        """
        with self._lock:
            if self._boots.get(robot) == boot:
                return False
            self._boots[robot] = boot
            self._schedule.lost(robot, progress)
            self._save()
            return True

    def lost(self, robot: str) -> None:
        """Take back what ``robot`` was doing."""
        with self._lock:
            self._schedule.lost(robot)
            self._save()

    @property
    def busy(self) -> frozenset[str]:
        """Robots whose assignment has not been reported yet."""
        return self._busy

    @property
    def phase(self) -> Phase:
        """Where the run stands."""
        return self._schedule.phase

    @property
    def env_steps(self) -> int:
        """Environment steps so far."""
        return self._schedule.env_steps

    @property
    def evaluations(self) -> list[Evaluation]:
        """Outcomes of the evaluation sets so far, the final one last."""
        with self._lock:
            final = [self._schedule.final] if self._schedule.final else []
            return [*self._schedule.evaluations, *final]

    @property
    def pinned(self) -> frozenset[int]:
        """Versions that evaluations name; the weight store must keep them."""
        with self._lock:
            schedule = self._schedule
            state = schedule.state_dict()
            named = {a["version"] for a in state["open"]} | {
                e.version for e in schedule.evaluations
            }
            if state["set"] is not None:
                named.add(state["set"]["version"])
            return frozenset(named)

    @property
    def elapsed_s(self) -> float:
        """Wall seconds that the run's hubs have lived."""
        return self._elapsed_before + (self._clock.now_ns() - self._opened_ns) / SECOND

    def curve(self) -> list[tuple[int, float, float]]:
        """Return (env steps, success rate, intervention rate) after each episode."""
        with self._lock:
            return list(self._curve)

    def stats(self) -> dict[str, float]:
        """Return the run's figures."""
        with self._lock:
            freeze, final = self._schedule.freeze, self._schedule.final
            figures = {
                **self._schedule.stats(),
                "wall_s": self.elapsed_s,
                "reports_doubled": float(self._doubled),
            }
            if freeze is not None:
                figures |= {
                    "freeze_version": float(freeze.version),
                    "freeze_env_steps": float(freeze.env_steps),
                    "freeze_wall_s": freeze.wall_s,
                }
            if final is not None:
                figures["final_success"] = final.rate
            return figures

    def _save(self) -> None:
        schedule = self._schedule.state_dict()
        state = {"elapsed_s": self.elapsed_s, "boots": self._boots, "schedule": schedule}
        write_json(self._state_path, state)
        self._note_busy(schedule)

    def _note_busy(self, schedule: Mapping[str, Any]) -> None:
        self._busy = frozenset(assignment["robot"] for assignment in schedule["open"])

    def _journal(self, result: EpisodeResult, point: tuple[int, float, float]) -> None:
        """Append before the state is saved: a crash between doubles a line, never loses one."""
        line = _plain(result) | {
            "wall_s": self.elapsed_s,
            "env_steps": point[0],
            "success_rate": point[1],
            "intervention_rate": point[2],
        }
        with open(self._journal_path, "a") as file:
            file.write(json.dumps(line, sort_keys=True) + "\n")


def _plain(result: EpisodeResult) -> dict[str, Any]:
    segments = {str(int(k)): v for k, v in result.segments.items()}
    plain = asdict(result) | {"segments": segments}
    return plain | {"purpose": int(result.purpose), "end": int(result.end)}


def _end_last_line(path: Path) -> None:
    """Keep a line that the power cut tore from spoiling the next one too."""
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        with open(path, "a") as file:
            file.write("\n")


def read_journal(path: Path) -> list[Mapping[str, Any]]:
    """Return the reported episodes in order, each once; a torn last line is left out."""
    if not path.exists():
        return []
    lines: dict[str, Mapping[str, Any]] = {}
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # the power went in the middle of this line; its episode is reported again
        lines[line["episode"]] = line
    return list(lines.values())


def _read_curve(path: Path) -> list[tuple[int, float, float]]:
    return [
        (int(e["env_steps"]), float(e["success_rate"]), float(e["intervention_rate"]))
        for e in read_journal(path)
    ]
