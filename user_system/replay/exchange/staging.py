"""Results that appear whole or not at all: made beside their place, synced, then renamed."""

import contextlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from user_system.core.durable import sync
from user_system.core.errors import ConfigError, StoreError
from user_system.replay import disk, layout


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield a path that nothing has; what is made there becomes ``target`` if the block ends well.

    A process that is killed leaves ``.<name>.unfinished-<random>`` behind, never ``target``.

    Raises:
        ConfigError: there is something at ``target`` already.
        StoreError: the disk failed.
    """
    work = target.with_name(f".{target.name}.unfinished-{secrets.token_hex(4)}")
    try:
        check_free(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        yield work
        _sync(work)
        check_free(target)
        work.rename(target)
        sync(target.parent)
    except OSError as error:
        what = f"cannot write {target}"
        raise StoreError(what, got=error, todo="Check space and rights.") from error
    finally:
        with contextlib.suppress(OSError):  # what was wrong with the path is said already
            layout.remove(work)


def hashes(root: Path) -> dict[str, str]:
    """Return the hash of every file under ``root``, by its path from there."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): file_hash(path) for path in files}


def file_hash(path: Path) -> str:
    """Return the xxh3-128 of a file."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return str(digest.hexdigest())


def check_free(target: Path) -> None:
    """Refuse to write over anything."""
    with disk.explained(f"cannot write {target}"):
        there = target.exists() or target.is_symlink()
    if there:
        raise ConfigError(
            f"{target} exists already", allowed="a path that does not", todo="Choose another name."
        )


def _sync(path: Path) -> None:
    """Make a file, or a directory with all that is in it, survive a power cut."""
    if path.is_dir():
        for child in path.iterdir():
            _sync(child)
    sync(path)
