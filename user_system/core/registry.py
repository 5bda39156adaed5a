"""Names for pluggable things. Values are import strings, so that listing them imports nothing."""

import difflib
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Generic, TypeVar, cast

from user_system.core.errors import ConfigError, PluginError

T = TypeVar("T")

GROUPS = (
    "robots",
    "cameras",
    "teleoperators",
    "learners",
    "encoders",
    "rewards",
    "failure_detectors",
    "tasks",
)
"""Entry-point groups are ``user_system.<group>``."""


class Registry(Generic[T]):
    """Name -> object of one group, from installed entry points.

    Args:
        group: one of ``GROUPS``.
        extra: further ``name -> "module:attribute"`` pairs, for tests.

    Raises:
        PluginError: two distributions register the same name, or a value cannot be imported.
        ConfigError: from ``get``, when the name is unknown; it lists what exists.
    """

    def __init__(self, group: str, extra: Mapping[str, str] | None = None):
        if group not in GROUPS:
            raise ConfigError("unknown plugin group", got=group, allowed=", ".join(GROUPS))
        self.group = group
        self._values: dict[str, str] = {}
        self._owners: dict[str, str] = {}
        for entry in entry_points(group=f"user_system.{group}"):
            self._add(entry.name, entry.value, entry.dist.name if entry.dist else "unknown")
        for name, value in (extra or {}).items():
            self._add(name, value, "extra")

    def _add(self, name: str, value: str, owner: str) -> None:
        known = self._values.get(name)
        if known is not None and known != value:
            raise PluginError(
                f"two plugins are called {name!r} in user_system.{self.group}",
                got=f"{known} of {self._owners[name]} and {value} of {owner}",
                todo="Uninstall one of them or rename its entry point.",
            )
        self._values[name], self._owners[name] = value, owner

    def names(self) -> list[str]:
        """Return the registered names, sorted."""
        return sorted(self._values)

    def describe(self) -> list[tuple[str, str, str]]:
        """Return (name, import string, distribution) of each, sorted by name."""
        return [(name, self._values[name], self._owners[name]) for name in self.names()]

    def get(self, name: str) -> T:
        """Import and return what ``name`` stands for."""
        if name not in self._values:
            near = difflib.get_close_matches(name, self._values, 1)
            raise ConfigError(
                f"no {self.group} plugin is called {name!r}",
                allowed=", ".join(self.names()) or "none installed",
                todo=f"Did you mean {near[0]!r}?" if near else "Install the package it comes in.",
            )
        module, _, attribute = self._values[name].partition(":")
        try:
            return cast(T, getattr(import_module(module), attribute))
        except (ImportError, AttributeError) as error:
            raise PluginError(
                f"plugin {name!r} of {self._owners[name]} cannot be imported",
                got=f"{self._values[name]}: {error}",
                todo="Install the extra it needs, or mend its entry point.",
            ) from error
