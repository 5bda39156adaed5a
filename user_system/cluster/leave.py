"""Leaving for good: a robot host ends what it runs, has its head revoke it, and removes its traces.

Each step may be repeated, and who the host is goes last: what was interrupted is run again. What
was recorded and is not at the head outlives it, unless a person says otherwise.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from comms import wireguard_link
from comms.enrolment import EnrolmentClient
from comms.wallet import DiskWallet
from user_system.cluster import census, runs, spools, systemd
from user_system.cluster.configs import LinkConfig
from user_system.cluster.dial import way_of
from user_system.cluster.edge_home import EdgeFile, EdgeHome
from user_system.cluster.layout import QUEUE
from user_system.core.errors import LinkError, MissingError, StoreError, UserSystemError
from user_system.edge import stop as stopping

_KEPT = "edge"
"""Folder with spools, and with the store of a host that keeps its experience itself."""

Ask = Callable[[LinkConfig], None]
"""Have the head revoke this host."""


@dataclass(frozen=True)
class Left:
    """What is left behind, for a person to look after."""

    records: int
    """Fragments that no store has acknowledged."""
    spools: tuple[Path, ...]
    """Where they are, or where something is that cannot be read."""
    stores: tuple[Path, ...]
    """Experience that this host kept for good: nobody else has it."""

    def __bool__(self) -> bool:
        return bool(self.spools or self.stores)


def leave(root: Path, say: Callable[[str], None], *, discard: bool, ask: Ask | None = None) -> bool:
    """Take a robot host out of its run; False: something is left for a person to do at the head.

    Args:
        root: its directory.
        say: tells a person what was done, and what is left to do.
        discard: delete what the head has not got, too.
        ask: how the head is asked.

    Raises:
        ConfigError: it is no directory of a robot host.
        LinkError: what runs does not end, or systemd refuses.
    """
    home = EdgeHome(root.resolve())
    file = home.read()
    _end(home, file)
    told = _revoked(home, file, say, ask or _ask)
    _without_unit(home, file)
    _without_interface(home, file, say)
    found = look(home)
    _remove(home, found, discard)
    for line in _words(home, found, discard):
        say(line)
    say(f"{file.name} has left run {file.facts.run!r}")
    return told


def look(home: EdgeHome) -> Left:
    """Return what is here that the head has not got."""
    records, queues = 0, []
    stores = [p.parent for p in sorted((home.root / _KEPT).glob("**/replay/data.mdb"))]
    for queue in sorted((home.root / _KEPT).glob(f"**/{QUEUE}")):
        try:
            found, journals = spools.look(queue.parent)
        except StoreError:
            queues.append(queue.parent)  # nobody can say that nothing is in it
            continue
        waiting = sum(source.fragments for source in found.waiting) + sum(found.aside.values())
        if waiting or any(journals.values()):
            records += waiting
            queues.append(queue.parent)
    return Left(records, tuple(queues), tuple(stores))


def _end(home: EdgeHome, file: EdgeFile) -> None:
    """Stop the robots at once, then end every process."""
    for host in stopping.found(home.root):
        try:
            stopping.ring(host, "somebody who has this host leave")
        except MissingError:
            continue  # the agent is gone, and its driver holds
    unit = systemd.unit_name(file.name)
    if systemd.runs_here() and (systemd.unit_folder() / unit).exists():
        systemd.stop(unit)
    record = census.read_record(home.root)
    if record is not None:
        runs.down(runs.Found(home.root, record))


def _ask(link: LinkConfig) -> None:
    with way_of(link, DiskWallet(link.pki, link.name)) as way:
        EnrolmentClient(way).leave()


def _revoked(home: EdgeHome, file: EdgeFile, say: Callable[[str], None], ask: Ask) -> bool:
    try:
        ask(home.link(file))
    except (UserSystemError, OSError) as error:
        say(f"the head did not revoke it: {error}")
        say(
            f"left to do at the head: user-system enrol revoke {file.name} "
            "(its keys are deleted here, so nobody can use them)"
        )
        return False
    say(f"the head has revoked {file.name}")
    return True


def _without_unit(home: EdgeHome, file: EdgeFile) -> None:
    name = systemd.unit_name(file.name)
    (home.root / name).unlink(missing_ok=True)
    path = systemd.unit_folder() / name
    if systemd.runs_here() and path.exists():
        path.unlink()
        systemd.forget()


def _without_interface(home: EdgeHome, file: EdgeFile, say: Callable[[str], None]) -> None:
    if file.facts.kind != "wireguard":
        return
    for conf in sorted(home.pki.glob("*.conf")):
        try:
            if wireguard_link.may_configure():
                wireguard_link.take_down(conf)
        except LinkError as error:
            say(str(error))
        link = Path("/etc/wireguard") / conf.name
        if link.is_symlink() or wireguard_link.is_up(conf.stem):
            say(
                f"left to do here, as root: systemctl disable wg-quick@{conf.stem}; "
                f"ip link delete {conf.stem}; rm -f {link}"
            )


def _remove(home: EdgeHome, found: Left, discard: bool) -> None:
    """Remove what is this host's; who it is goes last, so that this can be repeated."""
    keep = found and not discard
    for name in ("pki", "config", "sock", "ready", "logs", *([] if keep else [_KEPT])):
        if (home.root / name).exists():
            shutil.rmtree(home.root / name)
    home.setup.unlink(missing_ok=True)
    home.file.unlink()
    if not any(home.root.iterdir()):
        home.root.rmdir()


def _words(home: EdgeHome, found: Left, discard: bool) -> list[str]:
    if not found:
        return [f"nothing is left in {home.root}: the head has all that was recorded"]
    if discard:
        return [f"discarded: {found.records} records that the head had not got"]
    lines = [
        f"kept: {found.records} records that the head has not got, in {place}. "
        f"Take them out: user-system replay adopt {place} STORE --producer NEW --all"
        for place in found.spools
    ]
    lines += [f"kept: what this host stored itself, in {place}" for place in found.stores]
    return [*lines, f"Once nobody needs it: rm -r {home.root / _KEPT}"]
