"""What the tests of this folder share."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from user_system.replay.store import Store


def module(name):
    """A module of this folder; tests are no package."""
    full = f"exchange_tests_{name}"
    if full not in sys.modules:
        path = Path(__file__).with_name(f"{name}.py")
        spec = importlib.util.spec_from_file_location(full, path)
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


@pytest.fixture(scope="session")
def kit():
    """The module ``recordings``."""
    return module("recordings")


@pytest.fixture
def foreign(rng):
    """Make a dataset of somebody else; see the module ``foreign``."""

    def make(*args, **options):
        return module("foreign").Foreign(rng, *args, **options)

    return make


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def filled(tmp_path):
    """Make a closed store of what is given, and return its path."""

    def fill(parts, labels=(), name="store"):
        with Store(tmp_path / name).open(create=True) as store:
            assert store.append(parts) == []
            for label in labels:
                store.label(*label)
        return tmp_path / name

    return fill
