"""Inviting hosts into a run, and looking after those that came: what ``user-system enrol`` does."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from comms import deeds
from comms.authority import Authority, locked, read_revoked
from comms.credentials import Role, read_allowed
from comms.enrolment import EnrolmentClient
from comms.invitations import Invitation, Invitations
from comms.renewal import here, life_of, renew
from comms.wallet import DiskWallet
from user_system.cluster import runs, status
from user_system.cluster.configs import TeleopHostConfig
from user_system.cluster.dial import way_of
from user_system.cluster.edge_home import EdgeHome
from user_system.cluster.enrol import PAGE
from user_system.cluster.parse import Parser, read_json
from user_system.cluster.tree import Problems, from_plain
from user_system.core.errors import ConfigError, LinkError, SecurityError


@dataclass(frozen=True)
class Guest:
    """One name that is, may become, or was a peer."""

    name: str
    role: str
    state: str
    """``enrolled``, ``invited``, ``revoked``, or ``expired``: its certificate has run out."""
    left_s: float | None = None
    """Life that is left to its newest certificate, or to its invitation, s."""
    seen_s: float | None = None
    """Time since the hub heard of it, s; None: not known."""


@dataclass(frozen=True)
class _Lives:
    lives_s: float = field(metadata={"min": 60.0, "max": 7 * 86400.0})


def lifetime(text: str) -> float:
    """Return the seconds of a quantity such as ``1h``.

    Raises:
        ConfigError: it is none, or not between a minute and a week.
    """
    problems = Problems()
    parsed = Parser(problems).dataclass(from_plain({"lives": text}, "--lives"), _Lives, "")
    problems.check()
    if parsed is None:  # pragma: no cover - a parser that returns nothing names a problem
        raise ConfigError("not a time", got=text)
    return parsed.lives_s


def find(run: Path | None) -> Path:
    """Return the directory of the run that a person means, be it up or not.

    Raises:
        ConfigError: there is none, or several.
    """
    if run is None:
        return runs.choose(None).root
    if not (run / "pki").is_dir():
        raise ConfigError(f"{run} is not a run", todo="Name a directory such as runs/demo.")
    return run


def invitations(root: Path, by: str) -> Invitations:
    """Return the invitations of a run.

    Raises:
        ConfigError: its authority is on another host.
    """
    return Invitations(_authority(root), by)


def _authority(root: Path) -> Authority:
    if not here(root / "pki"):
        raise ConfigError(
            f"the authority of {root} is not on this host", todo="Use this command at the head."
        )
    return Authority.open(root / "pki")


def invite(root: Path, by: str, name: str, role: Role, life_s: float, at: str = "") -> Invitation:
    """Invite a host to a run.

    Args:
        root: the run's directory.
        by: who invites.
        name: of the new peer.
        role: what it may do.
        life_s: how long the invitation is good for.
        at: ``host`` or ``host:port`` of the page as the new host reaches it; "": as the page's
            first name says.

    Raises:
        ConfigError: the page takes nobody in, or is not called so.
        SecurityError: the name is enrolled already.
    """
    page = read_json(root / "config" / f"{PAGE}.json", TeleopHostConfig)
    if not page.tls:
        raise ConfigError(
            "the page of this run does not use TLS, and nobody joins without it",
            todo="Start it with --set teleop.host=ADDRESS for other hosts to reach it, or with "
            "--set teleop.tls=always behind a tunnel of your own.",
        )
    host, port = _place(at, page)
    if host not in page.names:
        raise ConfigError(
            "the page does not go by that name",
            got=host,
            allowed=", ".join(page.names),
            todo="Add it to teleop.names in the manifest and start the run again.",
        )
    return invitations(root, by).create(name, role, host, port, life_s)


def _place(at: str, page: TeleopHostConfig) -> tuple[str, int]:
    if not at:
        return page.names[0], page.port
    if at.startswith("["):
        host, _, port = at[1:].partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = at.partition(":") if at.count(":") == 1 else (at, "", "")
    if not host or not (port.isdecimal() or not port):
        raise ConfigError("not an address", got=at, allowed="host or host:port")
    return host, int(port or page.port)


def guests(root: Path) -> list[Guest]:
    """Return everybody who is, may become, or was a peer of a run, by name."""
    authority = _authority(root)
    now = time.time()
    allowed = read_allowed(authority.directory)
    seen = _seen(root)
    found = [
        Guest(peer.name, peer.role.value, "invited", until - now)
        for peer, until in Invitations(authority).open()
        if until > now
    ]
    for name, entry in allowed.items():
        ends = [float(facts["until"]) for facts in entry.get("certificates", {}).values()]
        left_s = max(ends, default=now) - now
        state = "enrolled" if left_s > 0 else "expired"
        found.append(Guest(name, entry["role"], state, left_s, seen.get(name)))
    known = {guest.name for guest in found}
    gone = read_revoked(authority.directory)
    found += [Guest(name, "", "revoked") for name in gone if name not in known]
    return sorted(found, key=lambda guest: guest.name)


def _seen(root: Path) -> dict[str, float]:
    """Return the time since the hub heard of each peer it knows of; {} where it is not up."""
    try:
        with status.Looker(root) as looker:
            view = looker.look()
    except (LinkError, SecurityError, OSError):
        return {}
    seen = {name: figures.get("age_s", 0.0) for name, figures in view.processes.items()}
    for robot in view.robots:
        seen[robot.host] = min(seen.get(robot.host, robot.seen_s), robot.seen_s)
    return seen


def revoke(root: Path, by: str, name: str) -> None:
    """Take a name off the allow-list, and its invitations with it.

    Raises:
        SecurityError: nobody is called so, or it is part of the head.
    """
    invitations(root, by).revoke(name)


def restore(root: Path, by: str, name: str, role: Role) -> None:
    """Let a name in whose processes run on the head's own host, with new keys."""
    if role is Role.SERVICE:
        raise ConfigError("the head's own processes are enrolled by `user-system up`", got=name)
    authority = _authority(root)
    with locked(authority.directory):
        deeds.note(authority.directory, "restore", by, name=name, role=role.value)
    authority.restore(name)
    authority.issue(name, role, anew=True)


def renew_all(root: Path, by: str, names: list[str]) -> dict[str, float]:
    """Renew certificates before they are due; return name -> life of the new one, s.

    At the head: of everybody whose keys are there, through the authority. On another host: its own,
    over the connection to the hub.

    Args:
        root: a run's directory, or that of a robot host of its own.
        by: who renews.
        names: whose; none: all that are there.

    Raises:
        SecurityError: unknown, or refused.
        LinkError: the hub cannot be reached.
    """
    pki = root / "pki"
    if not here(pki):
        return _renew_own(root, names)
    authority = _authority(root)
    issued = authority.issued()
    if strange := sorted(set(names) - set(issued)):
        raise SecurityError("keys that are not here", got=strange, allowed=", ".join(issued))
    for name in names or issued:
        with locked(pki):
            deeds.note(pki, "renew", by, name=name)
        authority.reissue(name, anew=True)
    return {name: _left_s(DiskWallet(pki, name)) for name in names or issued}


def _renew_own(root: Path, names: list[str]) -> dict[str, float]:
    home = EdgeHome(root.resolve())
    link = home.link(home.read())
    if names not in ([], [link.name]):
        raise SecurityError("a host renews its own certificate", got=names, allowed=link.name)
    wallet = DiskWallet(link.pki, link.name)
    with way_of(link, wallet) as way, locked(link.pki):
        renew(wallet, EnrolmentClient(way).renew)
    return {link.name: _left_s(wallet)}


def _left_s(wallet: DiskWallet) -> float:
    return life_of(wallet())[1] - time.time()
