"""A person made of script, who uses the page like everybody else.

It demonstrates where a robot waits for a demonstration, steps in where a training episode is not on
its way (less and less, see ``core.helping``), releases robots that faulted, and lets go on those
that wait for somebody. What it knows, it knows from the states that the page sends; what it does,
it does under a lease, one command for each state it sees. A robot that somebody else held and left
it does not touch.
"""

import asyncio
import logging
import random
import threading
import zlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from user_system.core.clock import SECOND, Clock, WallClock
from user_system.core.errors import LeaseError, LinkError
from user_system.core.helping import HelpConfig, Helper
from user_system.core.modes import HUMAN_MODES, STOPPED_MODES, Mode
from user_system.core.types import Array, Observation
from user_system.teleop.client import Seen, TeleopClient

log = logging.getLogger(__name__)

_EARLY = 20
"""States from before an answer that are let pass."""

Expert = Callable[[Observation], Array]
"""Observation -> action ``(Da,)``: what this person would do now."""


@dataclass(frozen=True)
class ScriptedConfig:
    """Where it works and what it is patient about; times in wall s."""

    url: str
    operator: str = "script"
    robots: tuple[str, ...] = ()
    """Robots it looks after; none named: all."""
    help: HelpConfig = field(default_factory=HelpConfig)
    recover_steps: int = 1
    """Commands in RECOVERY before it corrects."""
    correct_steps: int = 40
    """Commands after which it calls an episode a failure: the cube may lie where no arm reaches."""
    release_after_s: float | None = None
    """Rest in FAULT before it releases; None: it leaves that to others. Never leaves ESTOP."""
    resume_after_s: float = 2.0
    """Time that a robot waits for somebody before it is told to go on."""
    patience_s: float = 10.0
    """Silence of a robot after which it lets go of it."""
    retry_s: float = 1.0
    authority: Path | None = None
    """PEM file of who vouches for the page, where its address is https."""


@dataclass
class _Desk:
    """What it knows of one robot."""

    helper: Helper
    last: Seen
    news: asyncio.Event = field(default_factory=asyncio.Event)
    episode: str = ""
    helped: str = ""
    """Episode it stepped in; it does so once in each."""
    waiting: str = ""
    """What the robot waits for; "" while it works."""
    waiting_since_ns: int = 0


Deed = Callable[[TeleopClient, _Desk], Coroutine[Any, Any, bool]]


class ScriptedOperator:
    """Looks after robots through the page until it is told to stop.

    Args:
        config: see ``ScriptedConfig``.
        secret: of its account.
        expert: what it would do.
        on_its_way: whether an episode looks as if it will succeed by itself.
        clock: wall clock.
    """

    def __init__(
        self,
        config: ScriptedConfig,
        *,
        secret: str,
        expert: Expert,
        on_its_way: Callable[[Observation], bool] = lambda observation: False,
        clock: Clock | None = None,
    ):
        self.config = config
        self._secret, self._expert, self._on_its_way = secret, expert, on_its_way
        self._clock = clock or WallClock()
        self._desks: dict[str, _Desk] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        names = ("demonstrations", "takeovers", "releases", "resumes", "refusals", "commands")
        self._figures = dict.fromkeys(names, 0.0)

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set; dial again whenever the page goes away.

        Raises:
            SecurityError: the page does not know this operator.
        """
        asyncio.run(self._run(stop))

    def stats(self) -> dict[str, float]:
        """Return what it did so far."""
        return dict(self._figures)

    # --- the working day -------------------------------------------------------------------------

    async def _run(self, stop: threading.Event) -> None:
        work = asyncio.create_task(self._stay_connected())
        try:
            while not stop.is_set() and not work.done():
                await asyncio.sleep(0.1)
        finally:
            if not work.done():
                work.cancel()
            outcome = (await asyncio.gather(work, return_exceptions=True))[0]
        if isinstance(outcome, Exception):
            raise outcome

    async def _stay_connected(self) -> None:
        while True:
            try:
                async with TeleopClient.dial(
                    self.config.url, self.config.operator, self._secret, self.config.authority
                ) as client:
                    await self._work(client)
            except LinkError as error:
                log.info("dialling again: %s", error)
            await asyncio.sleep(self.config.retry_s * (0.5 + random.random()))

    async def _work(self, client: TeleopClient) -> None:
        client.on_state = lambda seen: self._note(client, seen)
        reading = asyncio.create_task(client.run())
        try:
            await client.ready()
            while not reading.done():
                await self._meet(client)
                await asyncio.wait([reading], timeout=0.5)
            await reading
        finally:
            tasks = [reading, *self._tasks.values()]
            self._tasks.clear()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _meet(self, client: TeleopClient) -> None:
        """Begin to look after robots that are new; notice when looking after one broke."""
        names = [r["name"] for r in client.status.get("robots", [])]
        mine = [n for n in names if not self.config.robots or n in self.config.robots]
        await client.follow(mine)
        for robot in self._desks:
            if robot not in self._tasks:
                self._tasks[robot] = asyncio.create_task(self._look_after(client, robot))
            elif self._tasks[robot].done():
                self._tasks.pop(robot).result()

    def _habit(self, robot: str) -> HelpConfig:
        """Robots are watched independently of each other, reproducibly."""
        seed = self.config.help.seed ^ zlib.crc32(robot.encode())
        return replace(self.config.help, seed=seed)

    def _note(self, client: TeleopClient, seen: Seen) -> None:
        if not seen.observation:
            return  # of a robot that is not followed, or one that was not read yet
        desk = self._desks.get(seen.robot)
        if desk is None:
            desk = self._desks[seen.robot] = _Desk(Helper(self._habit(seen.robot)), seen)
        desk.last = seen
        if seen.episode != desk.episode:
            desk.episode = seen.episode
            if seen.purpose == "train":
                figures = client.status.get("figures", {})
                desk.helper.begin(int(figures.get("env_steps") or 0))
        waiting = f"{seen.mode}: {seen.help}" if seen.help or seen.mode in STOPPED_MODES else ""
        if waiting != desk.waiting:
            desk.waiting, desk.waiting_since_ns = waiting, self._clock.now_ns()
        desk.news.set()

    # --- one robot -------------------------------------------------------------------------------

    async def _look_after(self, client: TeleopClient, robot: str) -> None:
        desk = self._desks[robot]
        while True:
            await desk.news.wait()
            desk.news.clear()
            deed = self._deed(desk, desk.last)
            if deed is not None and not await self._do(client, desk, deed):
                self._figures["refusals"] += 1
                await asyncio.sleep(self.config.retry_s)

    async def _do(self, client: TeleopClient, desk: _Desk, deed: Deed) -> bool:
        """Do something under a lease of its own; False: it could not be done.

        A page that went away is not noticed here but by the task that reads from it.
        """
        robot = desk.last.robot
        try:
            await client.claim(robot, realtime=False)
            try:
                return await deed(client, desk)
            finally:
                await client.yield_(robot)
        except (LeaseError, LinkError) as error:
            log.info("%s: %s", robot, error)
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # Giving up the lease failed on the way out: the order to end must not be lost.
                raise asyncio.CancelledError from error
            return False

    def _deed(self, desk: _Desk, seen: Seen) -> Deed | None:
        """Return what is to be done for a robot in this state; None: nothing."""
        waited_s = (self._clock.now_ns() - desk.waiting_since_ns) / SECOND
        if seen.holder or seen.left_by not in ("", self.config.operator):
            return None  # a person has it, or left it: only a person decides how it goes on
        if seen.mode == Mode.HOLD and seen.purpose == "collect" and seen.help:
            return self._demonstrate
        if seen.mode == Mode.AUTO and seen.purpose == "train" and seen.episode != desk.helped:
            on_its_way = self._on_its_way(seen.observation)
            return self._step_in if desk.helper.wants(seen.step, on_its_way) else None
        if seen.mode == Mode.FAULT:
            after = self.config.release_after_s
            return self._release if after is not None and waited_s > after else None
        if seen.mode == Mode.HOLD and seen.help and waited_s > self.config.resume_after_s:
            return self._resume
        return None

    async def _demonstrate(self, client: TeleopClient, desk: _Desk) -> bool:
        if not await self._ask(client, desk, "demonstrate"):
            waited_s = (self._clock.now_ns() - desk.waiting_since_ns) / SECOND
            # Not ready for one: it waits for somebody who clears the way and lets it go on.
            return waited_s > self.config.resume_after_s and await self._resume(client, desk)
        self._figures["demonstrations"] += 1
        await self._drive(client, desk, Mode.DEMO, limit=None)
        return True

    async def _step_in(self, client: TeleopClient, desk: _Desk) -> bool:
        """Hold, recover, correct to the end of the episode; what cannot be saved has failed."""
        if desk.last.mode != Mode.AUTO or desk.last.purpose != "train":
            return True  # it ended while the lease was on its way
        desk.helped = desk.episode
        if not await self._ask(client, desk, "hold"):
            return False
        if desk.episode != desk.helped:
            return await self._ask(client, desk, "hand_back")  # it ended at the last moment
        self._figures["takeovers"] += 1
        if self.config.recover_steps and await self._ask(client, desk, "recover"):
            await self._drive(client, desk, Mode.RECOVERY, limit=self.config.recover_steps)
        if await self._ask(client, desk, "correct"):
            steps = self.config.correct_steps
            all_sent = await self._drive(client, desk, Mode.CORRECTION, limit=steps)
            # Only what the last of them led to shows that it was in vain.
            if all_sent and await self._hears(desk) and self._drives(desk, Mode.CORRECTION):
                return await self._ask(client, desk, "done", success=False)
        waits = desk.last.mode == Mode.HOLD and desk.last.help
        if desk.episode == desk.helped and (waits or desk.last.mode in HUMAN_MODES):
            await self._ask(client, desk, "hand_back")
        return True

    async def _release(self, client: TeleopClient, desk: _Desk) -> bool:
        if not await self._ask(client, desk, "release"):
            return False
        self._figures["releases"] += 1
        return await self._ask(client, desk, "hand_back")

    async def _resume(self, client: TeleopClient, desk: _Desk) -> bool:
        done = await self._ask(client, desk, "hand_back")
        self._figures["resumes"] += done
        return done

    async def _drive(
        self, client: TeleopClient, desk: _Desk, mode: Mode, limit: int | None
    ) -> bool:
        """Answer each state with one command, while the robot is in ``mode`` in this episode.

        States from before the session's answer may still be on their way: a few are let pass.
        Return whether it sent as many as ``limit``.
        """
        episode, sent, early = desk.episode, 0, 0
        while (limit is None or sent < limit) and early < _EARLY:
            if not await self._hears(desk):
                return False
            seen = desk.last
            if seen.mode == mode and seen.episode == episode:
                await client.command(seen.robot, self._expert(seen.observation))
                sent += 1
                self._figures["commands"] += 1
            elif sent or seen.episode != episode:
                return False
            else:
                early += 1
        return sent == limit

    async def _hears(self, desk: _Desk) -> bool:
        """Wait for the robot's next state; False: it says nothing any more."""
        try:
            async with asyncio.timeout(self.config.patience_s):
                await desk.news.wait()
        except TimeoutError:
            log.warning("%s says nothing any more; it is let go", desk.last.robot)
            return False
        desk.news.clear()
        return True

    def _drives(self, desk: _Desk, mode: Mode) -> bool:
        """Whether it still drives the episode that it helped."""
        return desk.last.mode == mode and desk.episode == desk.helped

    async def _ask(
        self, client: TeleopClient, desk: _Desk, event: str, success: bool | None = None
    ) -> bool:
        granted, why = await client.ask(desk.last.robot, event, success)
        if not granted:
            log.info("%s: %s is refused: %s", desk.last.robot, event, why)
        return granted
