"""The one door to MuJoCo: chooses how it renders before it is loaded, which is the only chance.

Raises on import:
    MissingError: MuJoCo is not installed.
"""

import ctypes.util
import os
from importlib import import_module
from typing import Any

from user_system.core.errors import MissingError

PACKAGES = "libegl1 libegl-mesa0 libgl1-mesa-dri"
"""Debian and Ubuntu packages that off-screen rendering needs."""


def _load() -> Any:
    egl = ctypes.util.find_library("EGL") is not None
    os.environ.setdefault("MUJOCO_GL", "egl" if egl else "disabled")
    # Mesa's software renderer takes every core it finds; the learner needs them more.
    os.environ.setdefault("LP_NUM_THREADS", "1")
    try:
        return import_module("mujoco")
    except ImportError as error:
        raise MissingError(
            "MuJoCo cannot be loaded", got=error, todo="Run: pip install 'user-system[sim]'"
        ) from error


mujoco = _load()


def require_rendering() -> None:
    """Check that pictures can be drawn on this machine.

    Raises:
        MissingError: they cannot; the message names the packages to install.
    """
    if os.environ["MUJOCO_GL"] == "disabled":
        raise MissingError(
            "cameras cannot be rendered: no EGL on this machine",
            todo=f"Run: apt-get install -y {PACKAGES}",
        )
