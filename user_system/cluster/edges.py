"""Names and edges of a manifest: what one entry says about another.

Works on the tree, not on the typed manifest, so that a dangling name is found beside a wrong type.
"""

import re

from user_system.cluster.tree import Node, Problems, join

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
"""Names of things: they become file names, Ray resources and keys on the wire."""

HERE = "local"
"""The robot host that every machine is."""

RESERVED = ("head", "hub", "replay", "replay-reader", "teleop", "learner", "cli")
"""Names of the head's own processes and command lines on the wire: no robot host has one."""

LEARNER, POLICY = "learner-", "policy-"
"""How the names of learners, and of actors at the head, begin on the wire; theirs follow."""

SIMULATED = ("sim.", "gymnasium")
"""Kinds of robots whose clock need not be the wall's begin with one of these."""


_SECTIONS = ("robots", "hosts", "cameras", "tasks", "learners", "actors", "operators")
_REFERENCES = (
    ("robots", "task", "tasks"),
    ("robots", "actor", "actors"),
    ("robots", "cameras", "cameras"),
    ("actors", "learner", "learners"),
    ("operators", "robots", "robots"),
)
"""(section, key of its entries, section that the key points into)."""


def _entries(node: Node, section: str) -> dict[str, Node]:
    """Return what was written under a section, however wrong the rest is."""
    body = node.value.get(section) if isinstance(node.value, dict) else None
    return body.value if body is not None and isinstance(body.value, dict) else {}


def check_edges(root: Node, problems: Problems) -> None:
    """Note bad names, names that point to nothing, and entries that nothing points to."""
    _check_names(root, problems)
    _check_references(root, problems)
    _check_use(root, problems)
    _check_hosts(root, problems)


def _check_names(root: Node, problems: Problems) -> None:
    for section in _SECTIONS:
        for name, entry in _entries(root, section).items():
            if not NAME.fullmatch(name):
                allowed = "a letter, then letters, digits, - and _, at most 32"
                problems.add(
                    entry.where, join(section, name), "not a name", got=repr(name), allowed=allowed
                )
    for section in ("robots", "learners"):
        if isinstance(root.value, dict) and section in root.value and not _entries(root, section):
            problems.add(root.keys[section], section, "empty", allowed="at least one")


def _check_references(root: Node, problems: Problems) -> None:
    for section, key, target in _REFERENCES:
        known = _entries(root, target)
        for name in _entries(root, section):
            node = _entries(_entries_node(root, section), name).get(key)
            for item in _scalars(node):
                if item.value not in known:
                    place = f"{section}.{name}.{key}"
                    problems.unknown(
                        item.where, place, f"not one of the {target}", item.value, known
                    )


def _entries_node(root: Node, section: str) -> Node:
    return Node(_entries(root, section))


def _scalars(node: Node | None) -> list[Node]:
    """Return the names in a reference: one, or a list of them."""
    items = node.value if node is not None and isinstance(node.value, list) else [node]
    return [item for item in items if item is not None and isinstance(item.value, str)]


def _check_use(root: Node, problems: Problems) -> None:
    robots = _entries_node(root, "robots")
    used: set[str] = set()
    for name in robots.value:
        entry = _entries(robots, name)
        used.update(item.value for item in _scalars(entry.get("actor")))
        kind, rate = entry.get("kind", Node("")).value, entry.get("rate", Node(1.0))
        if rate.value not in (1, 1.0) and not str(kind).startswith(SIMULATED):
            problems.add(
                rate.where,
                f"robots.{name}.rate",
                f"{kind!r} has no clock of its own",
                got=rate.value,
                allowed="1; only simulated robots run at another rate",
            )
    for name, actor in _entries(root, "actors").items():
        if name not in used:
            problems.add(actor.where, f"actors.{name}", "no robot names this actor")


def _check_hosts(root: Node, problems: Problems) -> None:
    """Robots and the hosts they are wired to; a host that is only mentioned has nothing special."""
    robots, hosts = _entries_node(root, "robots"), _entries(root, "hosts")
    wired = {HERE}
    for name in robots.value:
        node = _entries(robots, name).get("host", Node(HERE))
        wired.add(str(node.value))
        place = f"robots.{name}.host"
        if node.value in RESERVED or str(node.value).startswith((LEARNER, POLICY)):
            problems.add(node.where, place, "a name of the head's own", got=repr(node.value))
        elif hosts and isinstance(node.value, str) and node.value not in {HERE, *hosts}:
            problems.unknown(node.where, place, "not one of the hosts", node.value, {HERE, *hosts})
    for name, host in hosts.items():
        if name not in wired:
            problems.add(host.where, f"hosts.{name}", "no robot is wired to this host")
    if HERE in hosts and _entries(Node(hosts), HERE).get("remote", Node(False)).value is True:
        todo = "Give the other machine a name of its own."
        problems.add(hosts[HERE].where, f"hosts.{HERE}", "this machine is not remote", todo=todo)
