"""Versions of policies: tensors by the hash of their content, one manifest per version.

    directory/<policy>/<version>.json  what a version consists of, and what it brought
    directory/<policy>/<version>.bin   the tensors that it brought, see ``packs``
    directory/versions.json            the greatest version that may have been given, per policy
    directory/incoming/                uploads under way

Version numbers are assigned here and only grow: no number is given before the disk holds a greater
or equal one, so none is ever given twice, whatever is lost. They are promised ``_AHEAD`` at a time,
so that no publish waits for the disk; after a crash some are left out. Going back to older weights
is a new version with the old content.

What a version consists of is on the file system before anybody hears of it, tensors first, and so
survives the death of this process. A thread forces it to disk right after; a power cut before that
may take the newest versions. They are then set aside when the store is opened again, as is
whatever else is not what was written, and the rest is served.
"""

import logging
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from user_system.codec.arrays import Buffer
from user_system.core.clock import SECOND, Clock
from user_system.core.durable import read_json, write_json
from user_system.core.errors import ConfigError, DamageError, SpecError, StoreError
from user_system.core.ports import Manifest, Near, Version
from user_system.hub import history, manifests
from user_system.hub.flusher import Flusher
from user_system.hub.packs import Packs, Table, Upload

log = logging.getLogger(__name__)

INCOMING = "incoming"

_OLD = ".old"
"""Suffix of a manifest whose version is forgotten while newer ones need tensors that it brought."""

_AHEAD = 16
"""Versions promised at a time."""


@dataclass(frozen=True, slots=True)
class Current:
    """The version to act with, as it is announced."""

    policy: str
    version: int
    hash: str
    age_s: float
    """Since the learner offered it, in wall s."""


@dataclass(frozen=True)
class WeightStoreConfig:
    """Bounds of the store."""

    keep: int = 8
    """Newest versions kept of each policy, all of them."""
    older: int = 16
    """Most versions kept of those before, ever further apart (``history``); the others go unless
    pinned."""
    max_bytes: int = 4 << 30
    """Largest set of weights accepted, in bytes."""
    max_uploads: int = 8
    """Uploads under way; the one begun first is forgotten when another begins."""


@dataclass
class _Pending:
    """An offer whose tensors are on their way."""

    manifest: Manifest
    offered_ns: int
    upload: Upload


class WeightStore:
    """All versions of all policies; implements ``core.ports.Shelf``. Thread-safe; restart-safe.

    Args:
        directory: where it keeps them.
        clock: wall clock, for ages.
        config: bounds.
        published: called after each new version, outside the lock.
        pinned: versions of a policy that must be kept though they are old.
    """

    def __init__(
        self,
        directory: Path,
        clock: Clock,
        config: WeightStoreConfig | None = None,
        *,
        published: Callable[[Current], None] = lambda current: None,
        pinned: Callable[[str], frozenset[int]] = lambda policy: frozenset(),
    ):
        self._directory, self._clock = directory, clock
        self._config = config or WeightStoreConfig()
        self._published, self._pinned = published, pinned
        self._lock = threading.RLock()
        self._packs = Packs(directory)
        self._manifests: dict[str, dict[int, Manifest]] = {}
        self._promised: dict[str, int] = {}
        self._given: dict[str, int] = {}
        self._offered_ns: dict[tuple[str, int], int] = {}
        self._uploads: OrderedDict[str, _Pending] = OrderedDict()
        self._watchers: list[Callable[[], None]] = []
        self._flusher = Flusher()
        self._figures = dict.fromkeys(("puts", "doubled", "bytes_in", "refused", "damaged"), 0.0)

    def open(self) -> None:
        """Read the versions back; what is not what was written is set aside and named in the log.

        Raises:
            DamageError: it is not known which versions were given; nothing is served then.
        """
        (self._directory / INCOMING).mkdir(parents=True, exist_ok=True)
        numbers = read_json(self._directory / "versions.json") or {}
        for left in (self._directory / INCOMING).iterdir():
            left.unlink()
        with self._lock:
            self._promised = {policy: int(version) for policy, version in numbers.items()}
            self._given = dict(self._promised)
            for policy in self._promised:
                self._manifests[policy] = {}
                for path in sorted((self._directory / policy).glob("*.json")):
                    self._read_back(path, live=True)
                for path in sorted((self._directory / policy).glob(f"*{_OLD}")):
                    self._read_back(path, live=False)
            for policy in self._promised:
                self._drop_broken(policy)

    def _read_back(self, path: Path, *, live: bool) -> None:
        """Take up a version, or only the tensors it brought, if they are as they were written."""
        try:
            manifest, brought = manifests.read(path)
            if brought:
                self._packs.add(_file(manifest), brought, manifest.tensors)
        except (DamageError, StoreError, SpecError) as error:
            self._set_aside(path, error, ".damaged")
            return
        if live:
            self._manifests[manifest.policy][manifest.version] = manifest
            self._offered_ns[manifest.policy, manifest.version] = self._clock.now_ns()

    def _drop_broken(self, policy: str) -> None:
        """Serve no version that needs tensors that are not there; those that it has stay."""
        kept = self._manifests[policy]
        for version, manifest in list(kept.items()):
            if any(entry.hash not in self._packs for entry in manifest.tensors):
                del kept[version]
                path = self._manifest_path(policy, version)
                self._set_aside(path, "tensors of it are not there", _OLD)

    def _set_aside(self, path: Path, why: object, suffix: str) -> None:
        log.error("%s is set aside: %s", path, why)
        self._figures["damaged"] += 1
        path.rename(path.with_suffix(suffix))

    # --- learner ---------------------------------------------------------------------------------

    def offer(self, manifest: Manifest) -> tuple[str, list[str]]:
        """Begin an upload, or go on with it; return its id and the hashes that are lacking.

        Raises:
            SpecError: no manifest, too large, or another architecture than the policy has.
        """
        with self._lock:
            try:
                manifests.check_offer(manifest, self._config.max_bytes)
                kept = self._manifests.get(manifest.policy)
                if kept:
                    manifests.check_architecture(kept[max(kept)], manifest)
            except SpecError:
                self._figures["refused"] += 1
                raise
            for upload, pending in self._uploads.items():
                if pending.manifest == manifest:
                    return upload, pending.upload.missing
            return self._begin(manifest)

    def _begin(self, manifest: Manifest) -> tuple[str, list[str]]:
        upload = uuid.uuid4().hex
        lacking = [entry for entry in manifest.tensors if entry.hash not in self._packs]
        path = self._directory / INCOMING / f"{upload}.bin"
        pending = _Pending(manifest, self._clock.now_ns(), Upload(path, lacking))
        self._uploads[upload] = pending
        while len(self._uploads) > self._config.max_uploads:
            _, oldest = self._uploads.popitem(last=False)
            oldest.upload.discard()
        return upload, pending.upload.missing

    def put(self, upload: str, tensor: str, offset: int, total: int, data: Buffer) -> None:
        """Take the next bytes of one tensor; it is checked once it is complete.

        Raises:
            SpecError: unknown upload or tensor, a gap, a wrong size, other bytes than offered, or
                numbers that are not finite.
            StoreError: the disk refused.
        """
        with self._counted():
            self._pending(upload).upload.put(tensor, offset, total, data)
        with self._lock:
            self._figures["bytes_in"] += len(data)

    def adopt(self, upload: str, file: str) -> None:
        """Take over a file in ``incoming`` with all that is missing.

        Raises:
            SpecError: it is not what was offered.
        """
        if Path(file).name != file or not file.endswith(".new"):
            raise SpecError("no name of a file in incoming", got=file[:80], allowed="<name>.new")
        with self._counted():
            self._pending(upload).upload.adopt(self._directory / INCOMING / file)

    def missing(self, upload: str) -> list[str]:
        """Return the hashes of the tensors that an upload still lacks.

        Raises:
            SpecError: unknown upload.
        """
        return self._pending(upload).upload.missing

    def commit(self, upload: str) -> int:
        """Assign the next version, announce it and return it.

        The same content as the newest version of the policy is that version again: a learner that
        never heard the answer may ask again.

        Raises:
            SpecError: unknown upload, or tensors are still missing.
            StoreError: the disk refused.
        """
        with self._lock:
            pending = self._pending(upload)
            if pending.upload.missing:
                count = len(pending.upload.missing)
                raise SpecError("tensors are still missing", got=f"{count} of them")
            del self._uploads[upload]
            kept = self._manifests.get(pending.manifest.policy, {})
            if kept and kept[max(kept)].hash == pending.manifest.hash:
                pending.upload.discard()
                self._figures["doubled"] += 1
                return max(kept)
            current = self._append(pending.manifest, pending.offered_ns, pending.upload)
        self._tell(current)
        return current.version

    def rollback(self, policy: str, version: int) -> int:
        """Make the content of an older version current again, as a new version; return it.

        Raises:
            ConfigError: no such version is kept; the message lists those that are.
            StoreError: the disk refused.
        """
        with self._lock:
            manifest = self.check_kept(policy, version)
            current = self._append(manifest, self._clock.now_ns(), None)
        self._tell(current)
        return current.version

    def check_kept(self, policy: str, version: int) -> Manifest:
        """Return what a version consists of.

        Raises:
            ConfigError: no such version is kept; the message lists those that are.
        """
        with self._lock:
            kept = self._manifests.get(policy, {})
            if version not in kept:
                raise ConfigError(
                    f"policy {policy!r} has no version {version} to go back to",
                    allowed=", ".join(map(str, sorted(kept))) or "none",
                )
            return kept[version]

    # --- robots ----------------------------------------------------------------------------------

    def newest(self, policy: str) -> int:
        """Return the current version; 0 while there is none."""
        with self._lock:
            return max(self._manifests.get(policy, {}), default=0)

    def get(self, policy: str, version: int = 0) -> Manifest | None:
        """Return what a version consists of, the newest for 0; None: there is none."""
        with self._lock:
            return self._manifests.get(policy, {}).get(version or self.newest(policy))

    def tensor(self, hash: str) -> memoryview:
        """Return the bytes of a tensor; they stay readable for as long as somebody holds them.

        Raises:
            SpecError: no such tensor.
        """
        with self._lock:
            return self._packs.read(hash)

    def near(self, hash: str) -> Near:
        """Return where a tensor lies below the store's directory.

        Raises:
            SpecError: no such tensor.
        """
        with self._lock:
            place = self._packs.place(hash)
        return Near(place.file, place.at, place.check)

    def age_s(self, policy: str, version: int) -> float:
        """Return how long ago a version was offered, wall s; 0 where that is not known."""
        with self._lock:
            now = self._clock.now_ns()
            return (now - self._offered_ns.get((policy, version), now)) / SECOND

    def watch(self, told: Callable[[], None]) -> Callable[[], None]:
        """Have ``told`` called after each new version; return what ends that."""
        with self._lock:
            self._watchers.append(told)

        def leave() -> None:
            with self._lock:
                if told in self._watchers:
                    self._watchers.remove(told)

        return leave

    def current(self) -> list[Current]:
        """Return the current version of every policy, to be announced."""
        with self._lock:
            newest = [kept[max(kept)] for kept in self._manifests.values() if kept]
            return [
                Current(m.policy, m.version, m.hash, self.age_s(m.policy, m.version))
                for m in newest
            ]

    def versions(self, policy: str = "") -> list[Version]:
        """Return the versions that are kept, of one policy or of all, oldest first."""
        with self._lock:
            return [
                Version(manifest, self.age_s(name, version))
                for name, kept in sorted(self._manifests.items())
                if policy in {"", name}
                for version, manifest in sorted(kept.items())
            ]

    def flush(self) -> None:
        """Wait until everything that was published is on the disk."""
        self._flusher.wait()

    def close(self) -> None:
        """Force everything to disk, and take back the numbers that were promised and not given."""
        self.flush()
        with self._lock:
            for pending in self._uploads.values():
                pending.upload.discard()
            self._uploads.clear()
            if self._given != self._promised:
                write_json(self._directory / "versions.json", self._given)
                self._promised = dict(self._given)

    def stats(self) -> dict[str, float]:
        """Return counters since the start and how many versions are kept."""
        with self._lock:
            kept = sum(len(versions) for versions in self._manifests.values())
            return {
                **self._figures,
                "versions_kept": float(kept),
                "flush_failures": float(self._flusher.failures),
            }

    # --- inside ----------------------------------------------------------------------------------

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except SpecError:
            with self._lock:
                self._figures["refused"] += 1
            raise

    def _pending(self, upload: str) -> _Pending:
        with self._lock:
            pending = self._uploads.get(upload)
        if pending is None:
            raise SpecError("no such upload", got=upload[:64], todo="Offer the weights again.")
        return pending

    def _tell(self, current: Current) -> None:
        """Say it to those who wait for it first: they need no second look."""
        with self._lock:
            watchers = list(self._watchers)
        for told in watchers:
            told()
        self._published(current)
        # Renaming and removing what is old can wait for the disk; those who wait need not.
        with self._lock:
            self._forget_old(current.policy)

    def _promise(self, policy: str) -> int:
        """Return the next version; the disk knows of it before anybody else does."""
        version = self._given.get(policy, 0) + 1
        if version > self._promised.get(policy, 0):
            promised = {**self._promised, policy: version - 1 + _AHEAD}
            write_json(self._directory / "versions.json", promised)
            self._promised = promised
        self._given[policy] = version
        return version

    def _append(self, manifest: Manifest, offered_ns: int, upload: Upload | None) -> Current:
        """Give ``manifest`` the next version. Needs the lock."""
        policy = manifest.policy
        manifest = replace(manifest, version=self._promise(policy))
        brought: Table = {}
        checks: dict[str, int] = {}
        path = self._manifest_path(policy, manifest.version)
        try:
            path.parent.mkdir(exist_ok=True)
            if upload is not None and upload.table:
                upload.close()
                upload.path.rename(path.with_suffix(".bin"))
                brought, checks = upload.table, upload.checks
            path.with_suffix(".part").write_bytes(manifests.to_bytes(manifest, brought))
            path.with_suffix(".part").rename(path)
        except OSError as error:
            # Nobody knows of these files: left behind they would fill the disk, try after try.
            for suffix in (".bin", ".part"):
                path.with_suffix(suffix).unlink(missing_ok=True)
            raise StoreError(
                f"{path} cannot be written", got=str(error), todo="Free space on its disk."
            ) from error
        if brought:
            self._packs.add(_file(manifest), brought, manifest.tensors, checks)
        self._manifests.setdefault(policy, {})[manifest.version] = manifest
        self._offered_ns[policy, manifest.version] = offered_ns
        self._figures["puts"] += 1
        self._flusher.add(*([path.with_suffix(".bin")] if brought else []), path)
        return Current(
            policy, manifest.version, manifest.hash, self.age_s(policy, manifest.version)
        )

    def _forget_old(self, policy: str) -> None:
        there = self._manifests[policy]
        keep = history.kept(there, self._config.keep, self._config.older) | self._pinned(policy)
        old = [there.pop(version) for version in set(there) - keep]
        if not old:
            return
        needed = {e.hash for pending in self._uploads.values() for e in pending.manifest.tensors}
        for versions in self._manifests.values():
            needed |= {e.hash for manifest in versions.values() for e in manifest.tensors}
        idle = self._packs.keep(needed)
        for manifest in old:
            self._offered_ns.pop((policy, manifest.version), None)
            path = self._manifest_path(policy, manifest.version)
            # As long as a newer version needs tensors that it brought, they stay known by it.
            path.rename(path.with_suffix(_OLD))
            if _file(manifest) not in self._packs.files:
                self._flusher.remove(path.with_suffix(_OLD))
        for file in idle:
            path = self._directory / file
            self._flusher.remove(path, path.with_suffix(_OLD))

    def _manifest_path(self, policy: str, version: int) -> Path:
        return self._directory / policy / f"{version:08d}.json"


def _file(manifest: Manifest) -> str:
    """Return the name of the file with what a version brought, relative to the directory."""
    return f"{manifest.policy}/{manifest.version:08d}.bin"
