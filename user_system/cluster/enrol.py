"""Who may speak at all: certificates and keys of a run's processes, made at its first start."""

from pathlib import Path

from comms.authority import Authority
from comms.credentials import Role
from user_system.cluster import auditing, away
from user_system.cluster.edges import LEARNER
from user_system.cluster.manifest import LOOPBACK, Manifest
from user_system.core.deeds import Deed
from user_system.teleop.auth import make_accounts

CLIENT = "cli"
"""Peer name of ``user-system status`` and the like."""
READER = "replay-reader"
"""Process that draws for learners of other hosts, and its peer name."""
PAGE = "teleop"
"""The page's process, and its peer name."""
PERSON = "engineer"
"""Account of the person who started the run."""

_SHARED = "learner"
"""Peer name of all learners of a run together, in earlier versions."""


def make_pki(directory: Path, manifest: Manifest) -> None:
    """Issue what is missing or about to expire; existing credentials stay as they are."""
    authority = Authority.open(directory, manifest.security.lifetime_s)
    roles = {"hub": Role.SERVICE, "replay": Role.SERVICE, PAGE: Role.SERVICE}
    roles |= {READER: Role.SERVICE, CLIENT: Role.ENGINEER}
    roles |= dict.fromkeys([f"{LEARNER}{name}" for name in manifest.learners], Role.LEARNER)
    # A robot host of its own makes its keys itself, and has them signed when it joins.
    near = [host for host in manifest.edge_hosts if not manifest.is_remote(host)]
    roles |= dict.fromkeys(near, Role.ROBOT)
    roles |= dict.fromkeys([f"{away.PEER}{actor}" for actor in manifest.away], Role.SERVICE)
    for name, role in roles.items():
        names = manifest.page_names if name == PAGE else names_of_head(manifest)
        authority.issue(name, role, names)
    if _SHARED in authority.issued():  # nobody uses it any more, so nobody else shall
        auditing.note(directory, Deed.REVOKE, name=_SHARED, why="learners have names of their own")
        authority.revoke(_SHARED)


def names_of_head(manifest: Manifest) -> list[str]:
    """Return the names and addresses under which the head's services are reached."""
    way = manifest.tunnel
    return list(dict.fromkeys(["localhost", LOOPBACK, way.near, way.host]))


def make_people(path: Path, manifest: Manifest) -> dict[str, str]:
    """Make the accounts of the page; return account -> secret."""
    roles = {PERSON: "engineer"} | dict.fromkeys(manifest.operators, "operator")
    return make_accounts(path, roles)
