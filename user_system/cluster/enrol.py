"""Who may speak at all: certificates and keys of a run's processes, made at its first start."""

from pathlib import Path

from comms.authority import Authority
from comms.credentials import Role
from user_system.cluster.manifest import Manifest
from user_system.teleop.auth import make_accounts

CLIENT = "cli"
"""Peer name of ``user-system status`` and the like."""
READER = "replay-reader"
"""Process that draws for learners of other hosts, and its peer name."""
PAGE = "teleop"
"""The page's process, and its peer name."""
PERSON = "engineer"
"""Account of the person who started the run."""


def make_pki(directory: Path, manifest: Manifest) -> None:
    """Issue what is missing or about to expire; existing credentials stay as they are."""
    authority = Authority.open(directory, manifest.security.lifetime_s)
    roles = {"hub": Role.SERVICE, "replay": Role.SERVICE, PAGE: Role.SERVICE}
    roles |= {READER: Role.SERVICE, "learner": Role.LEARNER, CLIENT: Role.ENGINEER}
    roles |= dict.fromkeys(manifest.hosts, Role.ROBOT)
    here = tuple(dict.fromkeys(("localhost", "127.0.0.1", manifest.tunnel.host)))
    for name, role in roles.items():
        authority.issue(name, role, manifest.page_names if name == PAGE else here)


def make_people(path: Path, manifest: Manifest) -> dict[str, str]:
    """Make the accounts of the page; return account -> secret."""
    roles = {PERSON: "engineer"} | dict.fromkeys(manifest.operators, "operator")
    return make_accounts(path, roles)
