import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


class WorldProcess:
    """A world process in a short directory of its own, ended by its id."""

    def __init__(self, directory: Path, **config):
        self.socket = str(directory / "world")
        path = directory / "world.json"
        path.write_text(json.dumps({"socket": self.socket, "rate": 4.0, **config}))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "robots.sim.world", str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until_served(self) -> None:
        deadline = time.monotonic() + 60
        while not Path(self.socket).exists():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end(self) -> tuple[int, str]:
        """Ask it to end; return its exit status and what it said."""
        self.process.terminate()
        try:
            _, said = self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, said


@pytest.fixture(scope="module")
def make_world() -> Iterator:
    """Return a function that starts a world process; all end with the module."""
    with contextlib.ExitStack() as stack:

        def make(**config) -> WorldProcess:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="us"))
            world = WorldProcess(Path(directory), **config)
            stack.callback(world.end)
            world.wait_until_served()
            return world

        yield make
