"""What is parsed into dataclasses, apart from the manifest's own mistakes."""

from dataclasses import dataclass

import pytest

from user_system.cluster.parse import Parser
from user_system.cluster.tree import Problems, from_plain
from user_system.core.errors import PluginError


@dataclass(frozen=True)
class Twice:
    control: str = "a"
    control_hz: float = 10.0


def test_two_fields_with_one_key_are_an_error_of_the_plugin() -> None:
    with pytest.raises(PluginError, match=r"'control'.*control and control_hz"):
        Parser(Problems()).dataclass(from_plain({}, "lab.yaml"), Twice, "")
