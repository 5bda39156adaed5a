import json
import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

from user_system.core import registry
from user_system.core.errors import ConfigError, PluginError
from user_system.core.registry import GROUPS, Registry


def entry(name: str, value: str, dist: str | None) -> EntryPoint:
    """Return an entry point as an installed distribution would have it."""
    point = EntryPoint(name, value, "user_system.robots")
    vars(point)["dist"] = SimpleNamespace(name=dist) if dist else None
    return point


@pytest.fixture
def installed(monkeypatch):
    """Pretend that only these entry points are installed."""

    def install(*points: EntryPoint) -> None:
        monkeypatch.setattr(registry, "entry_points", lambda group: list(points))

    install()
    return install


def test_get_imports_what_the_name_stands_for(installed):
    installed(entry("json", "json:dumps", "std"))
    assert Registry("robots").get("json") is json.dumps


def test_listing_imports_nothing(installed):
    installed(entry("a", "this_module_does_not_exist:X", "some-dist"))
    plugins = Registry("robots", {"b": "json:loads"})
    assert plugins.names() == ["a", "b"]
    assert plugins.describe()[0] == ("a", "this_module_does_not_exist:X", "some-dist")
    assert "this_module_does_not_exist" not in sys.modules


def test_two_plugins_of_one_name_are_an_error(installed):
    installed(entry("arm", "one:Arm", "dist-one"), entry("arm", "two:Arm", "dist-two"))
    with pytest.raises(PluginError, match=r"'arm'.*one:Arm of dist-one and two:Arm of dist-two"):
        Registry("robots")


def test_the_same_registration_twice_is_none(installed):
    installed(entry("arm", "one:Arm", "dist"), entry("arm", "one:Arm", "dist"))
    assert Registry("robots").names() == ["arm"]


def test_extra_may_not_shadow_an_installed_one(installed):
    installed(entry("arm", "one:Arm", None))
    with pytest.raises(PluginError, match="one:Arm of unknown and two:Arm of extra"):
        Registry("robots", {"arm": "two:Arm"})


def test_unknown_names_list_what_exists_and_the_nearest(installed):
    installed(entry("sim.franka", "a:B", "d"), entry("ur", "a:C", "d"))
    with pytest.raises(ConfigError, match=r"allowed: sim.franka, ur. Did you mean 'sim.franka'"):
        Registry("robots").get("sim.frank")
    with pytest.raises(ConfigError, match="Install the package"):
        Registry("robots").get("zzz")


def test_an_empty_group_says_so(installed):
    with pytest.raises(ConfigError, match="none installed"):
        Registry("robots").get("x")


@pytest.mark.parametrize("value", ["no_such_module_here:X", "json:NoSuchThing"])
def test_a_plugin_that_cannot_be_imported_is_named(installed, value):
    installed(entry("bad", value, "their-dist"))
    with pytest.raises(PluginError, match=f"'bad' of their-dist.*{value}"):
        Registry("robots").get("bad")


def test_unknown_groups_are_an_error():
    with pytest.raises(ConfigError, match="robots"):
        Registry("robot")


@pytest.mark.parametrize("group", GROUPS)
def test_what_is_installed_has_no_duplicates(group):
    names = Registry(group).names()
    assert len(names) == len(set(names))
