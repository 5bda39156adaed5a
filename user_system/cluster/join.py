"""Making this machine a robot host: keys, certificate, who the head is, and a unit that runs it.

The line comes from `user-system enrol create` at the head. It is used once; whatever fails before
the head has taken it leaves everything as it was, and what fails after it is said with what to do.
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from comms.invitations import parse_line
from comms.joining import Joined
from comms.joining import join as use_up
from user_system.cluster import census, systemd
from user_system.cluster.configs import JoinFacts
from user_system.cluster.edge_home import EdgeFile, EdgeHome, default_root
from user_system.cluster.parse import load
from user_system.cluster.process import write_private
from user_system.core.errors import ConfigError

LIVE_S = 60.0
"""Time for a host to start under systemd before the command no longer waits for it."""


Join = Callable[[str, Path], Joined]
"""Use a line up and put keys and certificate into a directory; ``comms.joining.join``."""


@dataclass(frozen=True)
class Made:
    """A robot host that was made, and has not started yet."""

    home: EdgeHome
    file: EdgeFile
    unit: Path
    """Where its unit lies."""
    managed: bool
    """Whether systemd runs this machine, and so this host."""

    @property
    def start_line(self) -> str:
        """The command that starts it."""
        if not self.managed:
            return f"user-system edge run {self.home.root}"
        user = "" if systemd.as_root() else "--user "
        return f"systemctl {user}enable --now {self.unit.name}"


def make(line: str, directory: Path | None, join: Join = use_up) -> Made:
    """Join and write everything down; nothing is started.

    Joining again into the same directory replaces credentials and address, and keeps the rest. What
    was interrupted may be repeated with the same line: the keys made for it are kept until their
    certificate is there.

    Args:
        line: as printed at the head.
        directory: of this host; None: the usual one.
        join: how to.

    Raises:
        ConfigError: the line is none, or the directory is another host's or in use.
        SecurityError: the head, or who answered in its place, refuses.
        LinkError: it cannot be reached.
    """
    name = parse_line(line).name
    home = EdgeHome((directory or default_root(name)).resolve())
    _check_free(home, name)
    with _scratch(home, line) as scratch:
        joined = join(line, scratch / "pki")
        told = {**joined.facts, "settings": joined.settings}
        facts = load(JoinFacts, told, "what the head told")
        home.root.mkdir(mode=0o700, exist_ok=True)
        home.root.chmod(0o700)
        _take_keys(scratch / "pki", home.pki)
        file = EdgeFile(joined.name, facts)
        home.write(file)
    return _with_unit(home, file)


@contextmanager
def _scratch(home: EdgeHome, line: str) -> Iterator[Path]:
    """Make a directory on the same disk, so that keys move in one step; kept until they did.

    Raises:
        ConfigError: nothing can be made there.
    """
    mark = hashlib.sha256(line.strip().encode()).hexdigest()[:16]
    place = home.root.with_name(f".joining-{mark}")
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot write to {place.parent}",
            got=error.strerror,
            todo="Choose another place with --dir.",
        ) from error
    yield place
    shutil.rmtree(place)


def _check_free(home: EdgeHome, name: str) -> None:
    """Check that a directory can become the host ``name``'s, before a line is used up for it."""
    if home.file.exists():
        _check_owner(home, name)
    elif home.root.exists() and (not home.root.is_dir() or any(home.root.iterdir())):
        raise ConfigError(
            f"{home.root} holds something else",
            allowed="a directory that is new, empty or of a robot host",
            todo="Choose another with --dir.",
        )


def _check_owner(home: EdgeHome, name: str) -> None:
    """Check that a robot host's directory is this one's, and that nothing needs it as it is."""
    if (owner := home.read().name) != name:
        raise ConfigError(
            f"{home.root} is the directory of another robot host",
            got=owner,
            allowed=name,
            todo="What it recorded stays its own: choose another place with --dir.",
        )
    record = census.read_record(home.root)
    if record is None or not record.launcher_alive:
        return
    if not (systemd.runs_here() and systemd.active(systemd.unit_name(name))):
        raise ConfigError(
            f"robot host {home.root} runs",
            got=f"process {record.launcher}",
            todo=f"End it first: user-system down {home.root}.",
        )


def _take_keys(new: Path, place: Path) -> None:
    """Replace the credentials in one step, as far as a directory can be: old ones move aside."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        place.rename(new.with_name("old"))  # deleted with the scratch directory
    new.rename(place)


def _with_unit(home: EdgeHome, file: EdgeFile) -> Made:
    managed = systemd.runs_here()
    name = systemd.unit_name(file.name)
    text = systemd.unit(file.name, home.root)
    path = (systemd.unit_folder() if managed else home.root) / name
    if managed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    else:
        write_private(path, text)
    return Made(home, file, path, managed)


def start(made: Made, say: Callable[[str], None]) -> None:
    """Have systemd run a host, and wait until it is live or a minute is over.

    Raises:
        LinkError: systemd refuses.
    """
    again = systemd.active(made.unit.name)
    ready = made.home.root / "ready" / f"edge-{made.file.name}"
    ready.unlink(missing_ok=True)
    systemd.start(made.unit.name, again=again)
    deadline = time.monotonic() + LIVE_S
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    user = "" if systemd.as_root() else "--user "
    log = f"journalctl {user}-u {made.unit.name}"
    if ready.exists():
        say(f"{made.file.name} is live; see {made.file.facts.page or 'the head'}, or: {log}")
    else:
        say(
            f"{made.file.name} has joined and is starting; see what it waits for: {log}, or: "
            f"user-system doctor {made.home.root}"
        )
    if user:
        say("To have it run while nobody is logged in: sudo loginctl enable-linger")
