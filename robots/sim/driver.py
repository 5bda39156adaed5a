"""The driver of a simulated Franka: a client of its world, as of a robot's cabinet."""

import logging
import select
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robots.sim import link
from robots.sim.config import SimFrankaConfig, spec_of
from robots.sim.state import cartesian_setpoint, joint_setpoint, observe
from user_system.core.clock import SECOND
from user_system.core.errors import LinkError, MissingError
from user_system.core.specs import RobotSpec
from user_system.core.types import Array, Reading, Stream

log = logging.getLogger(__name__)

PREVIEW_HZ = 10.0
"""Most pictures per wall second that a preview draws."""
ANSWER_S = 5.0
"""How long a request may take, wall s."""
FRESH_S = 1.0
"""How long a fresh report may take after the line was found full of old ones, wall s."""
WAITING_SAMPLES = 1000
"""Packets of samples that wait for whoever asks for them; then the oldest go."""
STALE_S = 5.0
"""A world that has not reported for this long, wall s, has stopped answering."""


class SimFranka:
    """A simulated FR3 with a parallel hand: a ``Robot``, ``Resettable`` and ``Sampled``.

    Args:
        config: what it is and where its world process listens.
    """

    config_type = SimFrankaConfig

    def __init__(self, config: SimFrankaConfig):
        self._config = config
        self._spec = spec_of(config)
        self._setpoint_of = cartesian_setpoint if config.space == "cartesian" else joint_setpoint
        self._socket: socket.socket | None = None
        self._report: link.Report | None = None
        self._awaited: set[int] = set()
        self._answers: dict[int, dict[str, Any]] = {}
        self._camera_error = ""
        self._parts = link.ImageParts(config.image_size)
        self._images: dict[str, tuple[Array, int]] = {}
        self._asked_ns: dict[str, int] = {}
        self._samples: deque[Stream] = deque(maxlen=WAITING_SAMPLES)
        self._requests = self._unsent = 0

    @property
    def spec(self) -> RobotSpec:
        """What this robot observes, obeys and is limited to."""
        return self._spec

    def connect(self) -> None:
        """Open the line to the world process and wait for its first report; moves nothing.

        Raises:
            LinkError: no world answers within ``connect_s``, or it serves another driver.
            MissingError: cameras are wanted and the world's machine cannot render.
        """
        deadline = time.monotonic() + self._config.connect_s
        self._socket = self._dial(deadline)
        self._socket.setblocking(False)
        wanted = self._config.cameras
        while self._report is None or not set(wanted) <= self._images.keys():
            if self._report is not None:
                self._ask_images(wanted, PREVIEW_HZ)
            if time.monotonic() > deadline:
                self._drop()
                raise LinkError(
                    "the world does not report",
                    got=self._config.socket,
                    todo="Look at its log: it may lack the packages that cameras need.",
                )
            self._wait(0.05)
            self._require_cameras()
        try:
            self._ask("tick", ns=round(SECOND / self._config.tick_hz))
            self._ask("wrist", hz=self._config.wrist_hz)
        except LinkError:
            self.close()
            raise

    def _dial(self, deadline: float) -> socket.socket:
        while True:
            line = link.open_socket()
            try:
                line.connect(self._config.socket)
            except OSError as error:
                line.close()
                if time.monotonic() > deadline:
                    raise LinkError(
                        "no world process answers",
                        got=f"{self._config.socket}: {error.strerror}",
                        todo="Start it with: python -m robots.sim.world CONFIG.json",
                    ) from error
                time.sleep(0.05)
            else:
                return line

    def read(self) -> Reading:
        """Return the newest state; never waits while the world reports.

        Raises:
            LinkError: not connected, or the world went away or stopped reporting.
        """
        self._receive()
        if self._age_s() > STALE_S:
            # This process slept so long that the line filled up with old reports: those are taken
            # now, so the next one is fresh if the world lives.
            self._wait(FRESH_S)
        if (age := self._age_s()) > STALE_S:
            raise LinkError("the world has stopped reporting", got=f"nothing for {age:.1f} s")
        report = self._report
        if report is None:
            raise LinkError("sim.franka is not connected", todo="Call connect() first.")
        observation = observe(report.state, self._config.space == "joint")
        if self._config.cameras:
            self._ask_images(self._config.cameras, self._config.control_hz * report.rate)
            observation |= {name: self._images[name][0] for name in self._config.cameras}
        return Reading(
            fields=observation,
            setpoint=self._setpoint_of(report.state),
            robot_ns=report.robot_ns,
            wall_ns=report.wall_ns,
            rate=report.rate,
            fault=report.fault,
        )

    def samples(self) -> Mapping[str, Stream]:
        """Return force N and torque N m at the wrist, float32 ``(N, 3)`` each, since the last call.

        All that was sampled before the state that ``read`` returned is there; never waits.
        """
        parts = list(self._samples)
        self._samples.clear()
        if not parts:
            return {}
        stamps = np.concatenate([part.stamps for part in parts])
        values = np.concatenate([part.values for part in parts])
        return {
            "wrist_force": Stream(stamps, values[:, :3]),
            "wrist_torque": Stream(stamps, values[:, 3:]),
        }

    def wait(self, robot_ns: int, timeout_s: float) -> None:
        """Return once a report of ``robot_ns`` or later is there, or the time is over.

        Raises:
            LinkError: the world went away.
        """
        deadline = time.monotonic() + timeout_s
        self._receive()
        while self._report is None or self._report.robot_ns < robot_ns:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._wait(left)

    def apply(self, setpoint: Array) -> None:
        """Follow one gated set-point ``(Dc,)``; never waits.

        Raises:
            LinkError: the world went away.
        """
        self._send(link.pack_setpoint(setpoint))

    def stop(self) -> None:
        """Brake, and stay with the joints held."""
        self._request("rest")

    def recover(self) -> None:
        """Clear the control box's fault; only because a person said so."""
        self._ask("recover")

    def reset_scene(self, seed: int, options: Mapping[str, float]) -> None:
        """Lay out the cube anew from ``seed``; the arm stays where it is.

        Where the hand is in the way the cube waits aside and appears when the hand has left.
        """
        self._ask("reset_scene", seed=seed, options=dict(options))

    def pace(self, rate: float) -> None:
        """Let the robot clock run at ``rate`` robot seconds per wall second."""
        self._ask("pace", rate=rate)

    def preview(self, camera: str) -> tuple[Array, int] | None:
        """Return the newest image ``(H, W, 3)`` uint8 with its wall ns, and ask for a fresh one.

        Never waits; None until the first has arrived. Pictures are drawn only when asked for.

        Raises:
            MissingError: the world's machine cannot render; the message says what to install.
        """
        self._require_cameras()
        self._ask_images((camera,), PREVIEW_HZ)
        return self._images.get(camera)

    def _require_cameras(self) -> None:
        if self._camera_error:
            raise MissingError(self._camera_error)

    def close(self) -> None:
        """Stop the arm and hang up; may be repeated.

        The world hangs up first: were this end closed with unread reports, the kernel would drop
        the farewell, and the world would take a clean end for a crash and latch a fault.
        """
        if self._socket is None:
            return
        deadline = time.monotonic() + ANSWER_S
        try:
            self._request("bye")
            while time.monotonic() < deadline:
                self._wait(0.05)
        except LinkError as error:
            log.info("closed: %s", error)
        self._drop()

    def world_stats(self) -> Mapping[str, float]:
        """Return the world process's own counters."""
        stats: Mapping[str, float] = self._ask("stats")["stats"]
        return stats

    def stats(self) -> Mapping[str, float]:
        """Return counters: requests made, packets the world did not take."""
        return {"requests": float(self._requests), "unsent": float(self._unsent)}

    def _ask_images(self, cameras: Sequence[str], hz: float) -> None:
        """Ask for the images that are due at ``hz`` per wall second."""
        now = time.monotonic_ns()
        due = [c for c in cameras if now - self._asked_ns.get(c, 0) >= SECOND / hz]
        if due:
            self._asked_ns |= dict.fromkeys(due, now)
            self._request("render", cameras=due)

    def _ask(self, what: str, **body: Any) -> dict[str, Any]:
        """Make a request and wait for its answer."""
        number = self._request(what, **body)
        self._awaited.add(number)
        deadline = time.monotonic() + ANSWER_S
        while number not in self._answers:
            if time.monotonic() > deadline:
                raise LinkError("the world does not answer", got=what, allowed=f"{ANSWER_S} s")
            self._wait(0.05)
        answer = self._answers.pop(number)
        self._awaited.discard(number)
        if answer["error"]:
            raise LinkError(f"the world refused {what!r}", got=answer["error"])
        return answer

    def _request(self, what: str, **body: Any) -> int:
        self._requests += 1
        self._send(link.pack_json(link.REQUEST, {"id": self._requests, "do": what, **body}))
        return self._requests

    def _send(self, packet: bytes) -> None:
        line = self._line()
        try:
            line.send(packet)
        except BlockingIOError:
            self._unsent += 1
        except OSError as error:
            self._lost(error)

    def _wait(self, seconds: float) -> None:
        select.select([self._line()], [], [], seconds)
        self._receive()

    def _receive(self) -> None:
        """Take everything that the world sent; only the newest report is kept."""
        line, newest = self._line(), b""
        try:
            while packet := line.recv(link.MAX_PACKET):
                kind = packet[:1]
                if kind == link.STATE:
                    newest = packet
                elif kind == link.WRIST:
                    self._samples.append(link.unpack_wrist(packet))
                elif kind == link.IMAGE:
                    self._take_image(packet)
                else:
                    self._take_answer(link.unpack_json(packet))
        except BlockingIOError:
            if newest:
                self._report = link.unpack_report(newest)
            return
        except OSError as error:
            self._lost(error)
        self._lost("it hung up")

    def _take_image(self, packet: bytes) -> None:
        done = self._parts.add(packet)
        if done is not None:
            camera, image, wall_ns = done
            self._images[camera] = (image, wall_ns)

    def _take_answer(self, answer: dict[str, Any]) -> None:
        if answer["id"] == 0:
            self._lost(answer["error"])
        if answer["id"] in self._awaited:
            self._answers[answer["id"]] = answer
        elif answer["error"]:
            self._camera_error = answer[
                "error"
            ]  # pictures are all that is not waited for and fails

    def _age_s(self) -> float:
        """Return how old the newest report is, wall s."""
        if self._report is None:
            return 0.0
        return (time.monotonic_ns() - self._report.wall_ns) / SECOND

    def _line(self) -> socket.socket:
        if self._socket is None:
            raise LinkError("sim.franka is not connected", todo="Call connect() first.")
        return self._socket

    def _lost(self, why: object) -> None:
        self._drop()
        raise LinkError("the world process went away", got=why, todo="Look at its log.")

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = self._report = None
        self._samples.clear()
