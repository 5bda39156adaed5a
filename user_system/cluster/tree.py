"""Plain trees whose nodes remember where they were written, and what is wrong with them.

A manifest is composed by the YAML library but never constructed by it: nodes keep their lines, so
that every problem can name its place, and nothing in a file can make Python run.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from user_system.core.errors import ConfigError


@dataclass(frozen=True)
class Node:
    """One value of a tree and the place it was written at."""

    value: Any
    """A scalar, a list of nodes, or a dict from key to node."""
    where: str = ""
    """``file:line`` of the value, or the command-line option that gave it."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Key -> place, for mappings."""

    @property
    def kind(self) -> str:
        """What a person would call it."""
        if isinstance(self.value, dict):
            return "a mapping"
        if isinstance(self.value, list):
            return "a list"
        return "nothing" if self.value is None else repr(self.value)


@dataclass
class Problems:
    """Every problem found so far, each one line: ``place: path: what; got; allowed. hint``."""

    lines: list[str] = field(default_factory=list)

    def add(
        self,
        where: str,
        path: str,
        what: str,
        *,
        got: object = None,
        allowed: object = None,
        todo: str = "",
    ) -> None:
        """Note one problem."""
        text = str(ConfigError(what, got=got, allowed=allowed, todo=todo))
        self.lines.append(": ".join(part for part in (where, path, text) if part))

    def unknown(self, where: str, path: str, what: str, name: str, known: Iterable[str]) -> None:
        """Note a name that does not exist, with the nearest that does."""
        names = sorted(known)
        near = difflib.get_close_matches(name, names, 1, 0.5)
        hint = f"Did you mean {near[0]!r}?" if near else ""
        self.add(where, path, what, got=repr(name), allowed=", ".join(names) or "none", todo=hint)

    def check(self) -> None:
        """Raise everything noted, if anything was.

        Raises:
            ConfigError: its text has one line per problem, in the order of the file.
        """
        if self.lines:
            raise Refused(self.lines)


class Refused(ConfigError):
    """All problems of one file at once."""

    def __init__(self, lines: list[str]):
        super().__init__(lines[0])
        self.lines = list(lines)

    def __str__(self) -> str:
        return "\n".join(self.lines)


def from_yaml(text: str, name: str, problems: Problems) -> Node:
    """Compose YAML into a tree; repeated keys and syntax errors become problems."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        return Node(None, f"{name}:1") if root is None else _convert(loader, root, name, problems)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problems.add(f"{name}:{line}", "", f"not YAML: {error.problem or error.context}")
        return Node({}, f"{name}:{line}")
    finally:
        loader.dispose()


def _convert(loader: yaml.SafeLoader, node: yaml.Node, name: str, problems: Problems) -> Node:
    where = f"{name}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.SequenceNode):
        return Node([_convert(loader, item, name, problems) for item in node.value], where)
    if not isinstance(node, yaml.MappingNode):
        return Node(loader.construct_object(node, deep=True), where)
    values: dict[str, Node] = {}
    keys: dict[str, str] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        place = f"{name}:{key_node.start_mark.line + 1}"
        if key in values:
            problems.add(place, key, "given twice", got=f"a first one at {keys[key]}")
            continue
        values[key], keys[key] = _convert(loader, value_node, name, problems), place
    return Node(values, where, keys)


def from_plain(value: Any, where: str = "") -> Node:
    """Wrap plain dicts, lists and scalars."""
    if isinstance(value, Mapping):
        return Node(
            {str(k): from_plain(v, where) for k, v in value.items()},
            where,
            {str(k): where for k in value},
        )
    if isinstance(value, list | tuple):
        return Node([from_plain(v, where) for v in value], where)
    return Node(value, where)


def override(root: Node, setting: str, problems: Problems) -> Node:
    """Return ``root`` with ``a.b.c=value`` put into it."""
    path, equals, text = setting.partition("=")
    where = f"--set {path}"
    if not equals or not path:
        problems.add("--set", "", "not a setting", got=setting, allowed="path.to.key=value")
        return root
    return _graft(root, path.split("."), from_yaml(text, where, problems), where)


def _graft(node: Node, path: list[str], leaf: Node, where: str) -> Node:
    if not path:
        return Node(leaf.value, where, leaf.keys)
    old = node.value if isinstance(node.value, dict) else {}
    child = _graft(old.get(path[0], Node(None, where)), path[1:], leaf, where)
    keys = {path[0]: where, **node.keys}
    return Node({**old, path[0]: child}, node.where or where, keys)


def join(path: str, key: str) -> str:
    """Return the path of ``key`` below ``path``."""
    return f"{path}.{key}" if path else key


def plain(node: Node) -> Any:
    """Return a tree without its places."""
    if isinstance(node.value, dict):
        return {key: plain(value) for key, value in node.value.items()}
    if isinstance(node.value, list):
        return [plain(value) for value in node.value]
    return node.value
