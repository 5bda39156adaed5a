"""Where a replay benchmark runs: a directory of its own, and the stores that its parts share."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from user_system.cluster.bench.replay_child import Child
from user_system.cluster.bench.replay_progress import Clock, Shown
from user_system.cluster.bench.replay_work import Sizes
from user_system.core.errors import MissingError

WRITER = "user_system.cluster.bench.replay_writer"
READER = "user_system.cluster.bench.replay_reader"
BACKENDS = "user_system.cluster.bench.replay_backends"
_RECORD_BYTES = 4096
"""Bytes of disk that a record without images may take."""


class Stage:
    """A directory that is removed at the end of its ``with`` block.

    Args:
        directory: what it is made in.
        sizes: how much is stored.
    """

    def __init__(self, directory: Path, sizes: Sizes):
        self.sizes = sizes
        self._parent = directory
        self._stack = ExitStack()
        self.directory = directory
        self._number = 0

    def __enter__(self) -> "Stage":
        self._parent.mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(dir=self._parent, prefix="bench-")
        self.directory = Path(self._stack.enter_context(place))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def sizes_plain(self) -> dict[str, Any]:
        """The sizes as JSON can hold them."""
        return asdict(self.sizes)

    def child(self, module: str, name: str) -> Child:
        """Return a process that is not started yet."""
        self._number += 1
        return Child(module, self.directory, f"{name}-{self._number}")

    def images(self, clock: Clock, shown: Shown) -> Path:
        """Return the store that batches are drawn from; made at the first call."""
        path = self.directory / "images"
        steps = self.sizes.steps
        return self._made(path, clock, shown, "fill", self.image_disk(steps), steps=steps)

    def records(self, clock: Clock, shown: Shown) -> Path:
        """Return the store of many records; made at the first call."""
        path, need = self.directory / "records", self.sizes.records * _RECORD_BYTES
        return self._made(path, clock, shown, "fill_records", need)

    def image_disk(self, steps: int) -> int:
        """Return how many bytes of disk so many steps may take."""
        return int(1.3 * self.sizes.images(steps) * self.sizes.image_bytes) + (64 << 20)

    def require(self, size: int) -> None:
        """Make sure that the disk has room.

        Raises:
            MissingError: it does not.
        """
        free = shutil.disk_usage(self.directory).free
        if free < size:
            raise MissingError(
                "not enough space for the benchmark",
                got=f"{free / 1e9:.1f} GB free at {self._parent}",
                allowed=f"{size / 1e9:.1f} GB",
                todo="Make space, or choose another place with --dir.",
            )

    def _made(
        self, path: Path, clock: Clock, shown: Shown, do: str, size: int, **values: Any
    ) -> Path:
        if not path.exists():
            self.require(size)
            shown.step(f"making the store {path.name}")
            with _whole(path), self.child(WRITER, "writer") as writer:
                writer.ask(do, clock.left(), path=str(path), sizes=self.sizes_plain, **values)
        return path


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Remove a store that was made only in part."""
    try:
        yield
    except BaseException:
        discard(path)
        raise


def discard(path: Path) -> None:
    """Remove a store, and the mark beside it that there was one."""
    shutil.rmtree(path, ignore_errors=True)
    path.with_name(f"{path.name}.made").unlink(missing_ok=True)
