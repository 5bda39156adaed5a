"""Checkpoints of a learner in a directory: the newest that can be read is where it goes on."""

import logging
from pathlib import Path
from typing import Any

from user_system.codec import weights as files
from user_system.core.errors import DamageError, StoreError

log = logging.getLogger(__name__)

_PATTERN = "checkpoint-*.safetensors"


class Checkpoints:
    """Numbered files, written whole or not at all; the last ``keep`` are kept.

    Args:
        directory: made on the first save.
        keep: at least two, so that a damaged newest one is not the end.
    """

    def __init__(self, directory: Path, keep: int = 2):
        self._directory, self._keep = directory, max(2, keep)

    def save(self, number: int, tree: Any) -> None:
        """Write checkpoint ``number``, then delete the oldest beyond ``keep``.

        Raises:
            StoreError: the disk failed; the earlier checkpoints are untouched.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make {self._directory}", got=error) from error
        files.save(self._directory / f"checkpoint-{number:012d}.safetensors", tree)
        for path in self._paths()[self._keep :]:
            path.unlink(missing_ok=True)

    def newest(self) -> Any | None:
        """Return the newest checkpoint that is whole; None where there is none at all.

        A damaged one is said aloud and set aside, so that it is neither read again nor lost.

        Raises:
            DamageError: there are checkpoints, and none can be read.
        """
        damaged = []
        for path in self._paths():
            try:
                tree = files.load(path)
            except DamageError as error:
                log.warning("checkpoint is damaged, trying the one before: %s", error)
                path.replace(path.with_suffix(".damaged"))
                damaged.append(path.name)
            else:
                log.info("going on from %s", path)
                return tree
        if damaged:
            raise DamageError(
                f"no checkpoint in {self._directory} can be read",
                got=", ".join(damaged),
                todo="Restore one from a backup, or move the directory away to start anew.",
            )
        return None

    def _paths(self) -> list[Path]:
        return sorted(self._directory.glob(_PATTERN), reverse=True)
