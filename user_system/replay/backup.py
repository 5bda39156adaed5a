"""A copy of a store that is in use, and the way back.

The copy is one snapshot: what was acknowledged before it began is in it. Pages are copied as they
are, so a backup is a store like any other, and can be read where it lies.
"""

import shutil
from contextlib import nullcontext
from pathlib import Path

from user_system.core.durable import sync
from user_system.core.errors import DamageError, StoreError
from user_system.replay import disk, layout, tables, verify
from user_system.replay.env import Env
from user_system.replay.pinning import backup_lock
from user_system.replay.progress import Progress


def backup(path: Path | str, target: Path | str, *, progress: Progress = lambda *_: None) -> Path:
    """Copy a store as it is at this moment, while it may be written to, and check the copy.

    Raises:
        StoreError: there is no store, or ``target`` is taken.
        DamageError: the copy is damaged, so the store is.
    """
    path, target = Path(path), Path(target)
    with disk.explained(f"cannot copy {path} to {target}"):
        if target.exists():
            raise StoreError(f"{target} is there already", allowed="a new place")
        progress("copying", 0, 2)
        with Env(path, tables.KIND, tables.TABLES, readonly=True, ahead=True).open() as env:
            fresh = target.with_name(target.name + ".new")
            layout.remove(fresh)
            fresh.mkdir(parents=True)
            try:
                _copy(env, fresh)
                progress("checking the copy", 1, 2)
                _check(env.path, fresh)
                fresh.rename(target)
            except BaseException:
                layout.remove(fresh)
                raise
        sync(target.parent)
    progress("checking the copy", 2, 2)
    return target


def _copy(env: Env, fresh: Path) -> None:
    # Only a writer wants to know whose snapshot lasts; a backup may lie where none may write.
    with backup_lock(env.path) if layout.is_written(env.path) else nullcontext():
        env.copy(fresh)
    with env.read() as txn:
        layout.write_schemas(fresh, tables.schemas(txn, env))
    shutil.copy(env.path / layout.MANIFEST, fresh / layout.MANIFEST)
    sync(fresh / layout.DATA)


def _check(path: Path, fresh: Path) -> None:
    findings = verify.verify(fresh)
    if not findings.ok:
        raise DamageError(f"the copy of {path} is damaged", got="; ".join(findings.damaged[:5]))


def restore(source: Path | str, path: Path | str, *, progress: Progress = lambda *_: None) -> Path:
    """Put a backup where a store was, after checking it.

    Raises:
        StoreError: something is there.
        DamageError: the backup is damaged.
    """
    source, path = Path(source), Path(path)
    with disk.explained(f"cannot restore {source} to {path}"):
        if path.exists():
            raise StoreError(
                f"{path} is there already", todo="Move it aside first; a restore never overwrites."
            )
        backup(source, path, progress=progress)
        layout.remember_made(path)
    return path
