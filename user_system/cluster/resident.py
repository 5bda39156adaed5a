"""What runs on a robot host that is a machine of its own: fetch the setup, run it, follow it.

::

    ask the head (or take the last setup from the disk) -> place it -> start -> watch
        the head has another one -> robots come to rest -> restart what changed

The head may be away at any time: what runs goes on. A head of a version that cannot be followed, or
a setup that makes no sense here, stops nothing either; it is told to the people on both sides.
"""

import logging
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from user_system.cluster import census, layout, permits, runs, setup, systemd
from user_system.cluster.edge_home import EdgeFile, EdgeHome
from user_system.cluster.interrupt import Interrupt
from user_system.cluster.launch import Supervisor
from user_system.cluster.layout import RunDir
from user_system.cluster.process import write_private
from user_system.cluster.setup import HostSetup, Placed
from user_system.cluster.setup_watch import SetupWatch
from user_system.core.errors import ConfigError, LinkError, StoreError, UserSystemError

FIRST_S = 5.0
"""Time for the head to answer before a host starts with what it ran the last time."""

POLL_S = 0.2
SAY_S = 60.0
"""Time after which it is said again what is waited for."""

log = logging.getLogger(__name__)


def run(root: Path, say: Callable[[str], None]) -> int:
    """Run a robot host until told to stop; return the exit status.

    Args:
        root: its directory, as `user-system edge join` made it.
        say: tells a person that it is live.

    Raises:
        ConfigError: it runs already, nobody joined there, or there is nothing that it could run.
        SecurityError: the head refuses it, and it has never run anything.
    """
    home = EdgeHome(root.resolve())
    file = home.read()
    clear(home.root)
    place = layout.open_run(home.root)
    place.make()
    supervisor = Supervisor(
        place.root,
        mark=f"{place.root}:{uuid.uuid4().hex}",
        page=file.facts.page,
        temporary=str(place.short),
    )
    supervisor.record().write(place.root)
    interrupt = Interrupt()
    with interrupt.watching(), SetupWatch(lambda: home.link(home.read())) as watch:
        try:
            Resident(home, file, place, supervisor, watch, interrupt, say).live()
        finally:
            systemd.tell("STOPPING=1")
            supervisor.stop(interrupt.hurry)
            shutil.rmtree(place.short, ignore_errors=True)
    return 128 + interrupt.number


def clear(root: Path) -> None:
    """End what an earlier life left behind that was killed.

    Raises:
        ConfigError: that life goes on.
    """
    record = census.read_record(root)
    if record is None:
        return
    if record.launcher_alive:
        raise ConfigError(
            f"robot host {root} runs already",
            got=f"process {record.launcher}",
            todo=f"End it first: user-system down {root}, or systemctl stop its unit.",
        )
    if left := runs.down(runs.Found(root, record)):
        log.warning("ended what an earlier life had left behind: %d processes", left)


class Resident:
    """One life of a robot host. Everything is called from the main thread.

    Args:
        home: its directory.
        file: who it is.
        place: where its processes keep what.
        supervisor: of its processes.
        watch: what the head says, already asking.
        interrupt: whether to end.
        say: tells a person.
    """

    def __init__(
        self,
        home: EdgeHome,
        file: EdgeFile,
        place: RunDir,
        supervisor: Supervisor,
        watch: SetupWatch,
        interrupt: Interrupt,
        say: Callable[[str], None],
    ):
        self._home, self._file, self._place, self._say = home, file, place, say
        self._supervisor, self._watch, self._interrupt = supervisor, watch, interrupt
        self._now = Placed((), {}, {})
        self._next: tuple[bytes, Placed] | None = None
        """What is waited for that robots come to rest for."""
        self._refused = ""
        """Hash of a setup that did not start here."""

    def live(self) -> None:
        """Run until interrupted."""
        systemd.tell("READY=1", "STATUS=asking the head what to run")
        document = self._first()
        if document:
            placed = self._placed(document)
            self._start(placed)
            self._began(document, placed)
        while document and not self._interrupt.asked():
            self._supervisor.poll()
            systemd.tell("WATCHDOG=1")
            self._follow()
            time.sleep(POLL_S)

    # --- the first one ---------------------------------------------------------------------------

    def _first(self) -> bytes:
        """Return what to run: what the head says, or else what ran the last time; b"": told to end.

        Raises:
            UserSystemError: the head refuses this host, or is of another version, and there is
                nothing from before.
        """
        saved = self._saved()
        began, said = time.monotonic(), float("-inf")
        while not self._interrupt.asked():
            systemd.tell("WATCHDOG=1")
            if document := self._watch.take():
                return document
            error = self._watch.error
            if saved and (time.monotonic() - began > FIRST_S or _final(error)):
                log.warning("starts with what it ran the last time: %s", error or "no answer yet")
                return saved
            if error is not None and _final(error):
                raise error
            if not saved and error is not None and time.monotonic() - said > SAY_S:
                said = time.monotonic()
                self._say(f"waits for the head at {self._file.facts.hub}: {error}")
            time.sleep(POLL_S)
        return b""

    def _saved(self) -> bytes:
        """Return the last setup that ran here, where it can be followed; else b""."""
        try:
            document = self._home.setup.read_bytes()
            self._placed(document)
        except FileNotFoundError:
            return b""
        except ConfigError as error:
            log.warning("what ran the last time cannot be followed any more: %s", error)
            return b""
        return document

    def _placed(self, document: bytes) -> Placed:
        found = self._checked(setup.decode(document))
        return setup.place(found, self._place, permits.read(self._home.root))

    def _checked(self, found: HostSetup) -> HostSetup:
        if found.host != self._file.name:
            raise ConfigError(
                "setup is another host's", got=repr(found.host), allowed=repr(self._file.name)
            )
        return found

    # --- starting, and what comes after -----------------------------------------------------------

    def _start(self, placed: Placed) -> None:
        """Start what of a setup does not run yet.

        Raises:
            ConfigError: a process refuses what it is told.
            LinkError: one does not start.
            StoreError: the disk refuses what they are to be told.
        """
        for path, text in placed.configs.items():
            _write(path, text)
        specs = [spec for spec in placed.specs if self._supervisor.pid(spec.name) is None]
        self._supervisor.start(specs, self._beat)
        self._now = placed

    def _beat(self) -> bool:
        systemd.tell("WATCHDOG=1")
        return self._interrupt.asked()

    def _began(self, document: bytes, placed: Placed) -> None:
        """Keep a setup that has started, and say so."""
        self._keep(document)
        if self._interrupt.asked():
            return
        robots = ", ".join(placed.robots) or "no robots"
        run, page = self._file.facts.run, self._file.facts.page
        systemd.tell(f"STATUS=live: {robots}")
        self._say(
            f"{self._file.name} is live: {robots} work for run {run!r}"
            + (f"; see {page}" if page else "; see `user-system status` at the head")
        )

    def _keep(self, document: bytes) -> None:
        try:
            _write(self._home.setup, document.decode())
        except StoreError as error:  # what runs goes on; the next start begins with an older one
            log.error("what runs now is not kept for a start without the head: %s", error)
        self._watch.tell(running=setup.hash_of(document), trouble="")

    def _follow(self) -> None:
        """Take what the head says now: let robots come to rest, then restart what changed."""
        if (document := self._watch.take()) and setup.hash_of(document) != self._refused:
            self._heard(document)
        if self._next is not None and all(
            self._supervisor.pid(name) is None for name in self._now.agents
        ):
            document, placed = self._next
            self._next = None
            self._switch(document, placed)

    def _heard(self, document: bytes) -> None:
        if setup.hash_of(document) == self._watch.running:
            return  # an answer to a question of before the last change
        try:
            placed = self._placed(document)
        except ConfigError as error:
            self._refuse(document, error)
            return
        if not placed.changed(self._now):
            self._keep(document)
            return
        if self._next is None:
            log.info("the setup changed; robots finish what they are at")
            for name in self._now.agents:
                self._supervisor.finish(name)
        self._watch.tell(trouble="waits for the end of an episode to take the new setup")
        self._next = (document, placed)

    def _switch(self, document: bytes, placed: Placed) -> None:
        """Restart what changed; a setup that does not start here makes way for the one before."""
        before = self._now
        changed = placed.changed(before) | set(before.agents)
        self._supervisor.end(changed, self._interrupt.hurry)
        try:
            self._start(placed)
        except (ConfigError, LinkError, StoreError) as error:
            self._supervisor.end([spec.name for spec in placed.specs], self._interrupt.hurry)
            self._refuse(document, error)
            self._start(before)
            return
        log.info("restarted: %s", ", ".join(sorted(changed)))
        self._began(document, placed)

    def _refuse(self, document: bytes, error: UserSystemError) -> None:
        self._refused = setup.hash_of(document)
        self._watch.tell(trouble=str(error))
        log.error("the setup of the head is not followed: %s", error)


def _write(path: Path, text: str) -> None:
    """Write a file unless it says the same already: a full disk keeps nothing from its old life.

    Raises:
        StoreError: the disk refused.
    """
    try:
        if not path.exists() or path.read_text() != text:
            write_private(path, text)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written", got=error.strerror, todo="Free space on its disk."
        ) from error


def _final(error: UserSystemError | None) -> bool:
    """Whether it makes no sense to wait: a person must do something first."""
    return error is not None and not isinstance(error, LinkError)
