"""Versions of policies: tensors by the hash of their content, one manifest per version.

    directory/tensors/<2 hex>/<hash>   the bytes of one tensor, once, however many versions use it
    directory/<policy>/<version>.json  what a version consists of
    directory/versions.json            the greatest version ever promised, per policy

Version numbers are assigned here and only grow: a number is on disk before it is used, so none is
used twice. Going back to older weights is a new version with the old content. A manifest is written
after its tensors, so a version that is seen is whole.
"""

import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from user_system.core.clock import SECOND, Clock
from user_system.core.durable import read_json, write_bytes, write_json
from user_system.core.errors import ConfigError, SpecError
from user_system.core.ports import Manifest, TensorEntry
from user_system.hub import manifests


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
    """Newest versions kept of each policy; older ones go unless pinned."""
    max_bytes: int = 4 << 30
    """Largest set of weights accepted, in bytes."""
    max_uploads: int = 8
    """Uploads under way; the one begun first is forgotten when another begins."""


@dataclass
class _Upload:
    """An offer whose tensors are on their way."""

    manifest: Manifest
    offered_ns: int
    partial: dict[str, bytearray] = field(default_factory=dict)

    def entry(self, tensor: str) -> TensorEntry:
        for entry in self.manifest.tensors:
            if entry.hash == tensor:
                return entry
        raise SpecError("a tensor that was not offered", got=tensor[:80])


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
        self._manifests: dict[str, dict[int, Manifest]] = {}
        self._promised: dict[str, int] = {}
        self._offered_ns: dict[str, int] = {}
        self._uploads: OrderedDict[str, _Upload] = OrderedDict()
        self._figures = dict.fromkeys(("puts", "doubled", "bytes_in", "bytes_out", "refused"), 0.0)

    def open(self) -> None:
        """Read the manifests back.

        Raises:
            DamageError: a file is not what was written; nothing is served then.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        numbers = read_json(self._directory / "versions.json") or {}
        with self._lock:
            self._promised = {policy: int(version) for policy, version in numbers.items()}
            for policy in self._promised:
                found = [manifests.read(p) for p in (self._directory / policy).glob("*.json")]
                self._manifests[policy] = {manifest.version: manifest for manifest in found}
                self._offered_ns[policy] = self._clock.now_ns()

    # --- learner ---------------------------------------------------------------------------------

    def offer(self, manifest: Manifest) -> tuple[str, list[str]]:
        """Begin an upload; return its id and the hashes of the tensors that are lacking.

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
            upload = uuid.uuid4().hex
            self._uploads[upload] = _Upload(manifest, self._clock.now_ns())
            while len(self._uploads) > self._config.max_uploads:
                self._uploads.popitem(last=False)
            return upload, self._lacking(manifest)

    def put(self, upload: str, tensor: str, offset: int, total: int, data: bytes) -> None:
        """Take the next bytes of one tensor; it is on disk once it is complete.

        Raises:
            SpecError: unknown upload or tensor, a gap, a wrong size, other bytes than offered, or
                numbers that are not finite.
        """
        with self._lock:
            pending = self._upload(upload)
            entry = pending.entry(tensor)
            try:
                self._take(pending, entry, offset, total, data)
            except SpecError:
                self._figures["refused"] += 1
                pending.partial.pop(tensor, None)
                raise

    def commit(self, upload: str) -> int:
        """Assign the next version, make it durable, announce it and return it.

        The same content as the newest version of the policy is that version again: a learner that
        never heard the answer may ask again.

        Raises:
            SpecError: unknown upload, or tensors are still missing.
        """
        with self._lock:
            pending = self._upload(upload)
            lacking = self._lacking(pending.manifest)
            if lacking:
                raise SpecError("tensors are still missing", got=f"{len(lacking)} of them")
            del self._uploads[upload]
            kept = self._manifests.get(pending.manifest.policy, {})
            if kept and kept[max(kept)].hash == pending.manifest.hash:
                self._figures["doubled"] += 1
                return max(kept)
            current = self._append(pending.manifest, pending.offered_ns)
        self._published(current)
        return current.version

    def rollback(self, policy: str, version: int) -> int:
        """Make the content of an older version current again, as a new version; return it.

        Raises:
            ConfigError: no such version is kept; the message lists those that are.
        """
        with self._lock:
            manifest = self.get(policy, version)
            if manifest is None or not version:
                raise ConfigError(
                    f"policy {policy!r} has no version {version} to go back to",
                    allowed=", ".join(map(str, sorted(self._manifests.get(policy, {})))) or "none",
                )
            current = self._append(manifest, self._clock.now_ns())
        self._published(current)
        return current.version

    # --- robots ----------------------------------------------------------------------------------

    def newest(self, policy: str) -> int:
        """Return the current version; 0 while there is none."""
        with self._lock:
            return max(self._manifests.get(policy, {}), default=0)

    def get(self, policy: str, version: int = 0) -> Manifest | None:
        """Return what a version consists of, the newest for 0; None: there is none."""
        with self._lock:
            return self._manifests.get(policy, {}).get(version or self.newest(policy))

    def read(self, tensor: str, offset: int, limit: int) -> tuple[bytes, int]:
        """Return up to ``limit`` bytes of a tensor from ``offset``, and its total size.

        Raises:
            SpecError: no such tensor, or an offset behind its end.
        """
        try:
            with open(self._tensor_path(tensor), "rb") as file:
                total = file.seek(0, 2)
                if not 0 <= offset <= total:
                    raise SpecError("offset behind the end", got=offset, allowed=f"0..{total}")
                file.seek(offset)
                data = file.read(limit)
        except FileNotFoundError:
            raise SpecError(
                "no such tensor", got=tensor, todo="Get the manifest again: its version is gone."
            ) from None
        with self._lock:
            self._figures["bytes_out"] += len(data)
        return data, total

    def current(self) -> list[Current]:
        """Return the current version of every policy, to be announced."""
        now = self._clock.now_ns()
        with self._lock:
            newest = [kept[max(kept)] for kept in self._manifests.values() if kept]
            return [
                Current(m.policy, m.version, m.hash, (now - self._offered_ns[m.policy]) / SECOND)
                for m in newest
            ]

    def stats(self) -> dict[str, float]:
        """Return counters since the start and how many versions are kept."""
        with self._lock:
            kept = sum(len(versions) for versions in self._manifests.values())
            return {**self._figures, "versions_kept": float(kept)}

    # --- inside ----------------------------------------------------------------------------------

    def _lacking(self, manifest: Manifest) -> list[str]:
        hashes = {entry.hash for entry in manifest.tensors}
        return sorted(h for h in hashes if not self._tensor_path(h).exists())

    def _upload(self, upload: str) -> _Upload:
        pending = self._uploads.get(upload)
        if pending is None:
            raise SpecError("no such upload", got=upload[:64], todo="Offer the weights again.")
        return pending

    def _take(
        self, pending: _Upload, entry: TensorEntry, offset: int, total: int, data: bytes
    ) -> None:
        size = manifests.nbytes(entry)
        buffer = pending.partial.setdefault(entry.hash, bytearray())
        if total != size or len(buffer) + len(data) > size:
            raise SpecError("a tensor of the wrong size", got=total, allowed=size)
        if offset != len(buffer):
            raise SpecError("a gap in a tensor", got=offset, allowed=len(buffer))
        buffer += data
        if len(buffer) == size:
            whole = bytes(pending.partial.pop(entry.hash))
            manifests.check_tensor(entry, whole)
            write_bytes(self._tensor_path(entry.hash), whole)
            self._figures["bytes_in"] += size

    def _append(self, manifest: Manifest, offered_ns: int) -> Current:
        """Give ``manifest`` the next version. Needs the lock."""
        policy = manifest.policy
        version = max(self._promised.get(policy, 0), self.newest(policy)) + 1
        promised = {**self._promised, policy: version}
        write_json(self._directory / "versions.json", promised)
        self._promised = promised
        manifest = replace(manifest, version=version)
        write_json(self._manifest_path(policy, version), manifests.to_json(manifest))
        self._manifests.setdefault(policy, {})[version] = manifest
        self._offered_ns[policy] = offered_ns
        self._figures["puts"] += 1
        self._forget_old(policy)
        age_s = (self._clock.now_ns() - offered_ns) / SECOND
        return Current(policy, version, manifest.hash, age_s)

    def _forget_old(self, policy: str) -> None:
        kept = self._manifests[policy]
        newest = set(sorted(kept)[-self._config.keep :])
        old = [kept.pop(v) for v in set(kept) - newest - self._pinned(policy)]
        if not old:
            return
        needed = {e.hash for pending in self._uploads.values() for e in pending.manifest.tensors}
        for versions in self._manifests.values():
            needed |= {e.hash for manifest in versions.values() for e in manifest.tensors}
        for manifest in old:
            self._manifest_path(policy, manifest.version).unlink(missing_ok=True)
            for entry in manifest.tensors:
                if entry.hash not in needed:
                    self._tensor_path(entry.hash).unlink(missing_ok=True)

    def _manifest_path(self, policy: str, version: int) -> Path:
        return self._directory / policy / f"{version:08d}.json"

    def _tensor_path(self, tensor: str) -> Path:
        if not manifests.is_hash(tensor):
            raise SpecError("not a tensor's hash", got=tensor[:80], allowed="sha256 in hex")
        return self._directory / "tensors" / tensor[:2] / tensor
