import inspect

import pytest

from user_system.core import errors

TREE = [value for value in vars(errors).values() if inspect.isclass(value)]


@pytest.mark.parametrize("kind", TREE)
def test_one_tree(kind):
    assert issubclass(kind, errors.UserSystemError)
    assert kind.__name__ in (errors.__doc__ or "")


def test_damage_is_a_store_error():
    assert issubclass(errors.DamageError, errors.StoreError)


def test_message_says_what_got_allowed_and_what_to_do():
    error = errors.ConfigError(
        "port is taken.", got=80, allowed="a free one", todo="Choose another."
    )
    assert str(error) == "port is taken; got 80; allowed: a free one. Choose another."
    assert (error.what, error.got, error.allowed) == ("port is taken.", 80, "a free one")


def test_message_leaves_out_what_is_not_known():
    assert str(errors.LinkError("hub is gone")) == "hub is gone"
    assert str(errors.LinkError("hub is gone", got=0)) == "hub is gone; got 0"
    assert str(errors.LinkError("hub is gone", todo="Wait.")) == "hub is gone. Wait."
