"""Which versions work together."""

import pytest

from user_system.core.errors import ConfigError
from user_system.core.versions import PROTOCOL, check_version


@pytest.mark.parametrize(
    ("head", "ours"), [("0.1.0", "0.1.9"), ("1.2.0", "1.9.3"), ("0.1.0", "0.1.0rc1")]
)
def test_patches_work_together(head: str, ours: str) -> None:
    check_version(PROTOCOL, head, ours)


@pytest.mark.parametrize(
    ("head", "ours", "older", "install"),
    [
        ("0.2.0", "0.1.4", "this robot host", "0.2.0"),
        ("0.1.4", "0.2.0", "the head", "0.2.0"),
        ("2.0.0", "1.10.0", "this robot host", "2.0.0"),
        ("1.9.0", "0.10.0", "this robot host", "1.9.0"),
    ],
)
def test_others_are_named_with_what_to_do(head: str, ours: str, older: str, install: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_version(PROTOCOL, head, ours)
    text = str(caught.value)
    assert f"head {head}" in text
    assert f"this host {ours}" in text
    assert f"On {older}: pip install 'user-system=={install}'" in text


@pytest.mark.parametrize(
    ("protocol", "todo"),
    [
        (PROTOCOL + 1, "On this robot host: install the very build that the head has"),
        (PROTOCOL - 1, "On the head: install the very build that this robot host has"),
    ],
)
def test_another_protocol_is_another_version(protocol: int, todo: str) -> None:
    with pytest.raises(ConfigError, match=rf"protocol {protocol}\).*protocol {PROTOCOL}\)") as told:
        check_version(protocol, "0.1.0", "0.1.0")
    assert todo in str(told.value)
