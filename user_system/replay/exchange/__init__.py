"""Datasets of others from our store, and into it: LeRobotDataset v3, MCAP.

Each library has one door: ``parquet`` (pyarrow), ``video`` (PyAV), ``picture`` (Pillow) and
``mcap_file`` (mcap). They are the extra ``exchange`` of this package.
"""

from importlib.util import find_spec

from user_system.core.errors import MissingError


def require(*packages: str) -> None:
    """Make sure that optional packages are installed, before a module that needs them is imported.

    Raises:
        MissingError: one is not.
    """
    for package in packages:
        if find_spec(package) is None:
            raise MissingError(
                f"Python package {package} is missing",
                todo="Install it: pip install 'user-system[exchange]'.",
            )
