"""Weights on their way to a robot host: wanted, checked, laid down for the workers.

For each policy one thread always wants the first version that is newer than what is here, so a new
one begins to come as soon as there is one; an evaluation's pinned version goes before. What has
come is checked as a whole (architecture, hash, finite numbers) before a robot's loop hears of it,
and lies in files that the policy worker reads itself: weights never pass through the agent's loops.
Versions move forward only. What is here stays, so that a host that comes back while the head is
away acts with what it had.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from comms.weight_bodies import HELD, NEAR
from comms.weight_puller import Wanted
from comms.weight_transfer import Transfer
from user_system.codec import deltas
from user_system.codec.arrays import Buffer, checked_size, checksum, width
from user_system.core.errors import (
    DamageError,
    MissingError,
    SpecError,
    StoreError,
    UserSystemError,
)
from user_system.core.ports import Manifest, TensorEntry, Travel
from user_system.core.supervise import Backoff
from user_system.edge.messages import WeightsReady
from user_system.edge.weight_files import (
    BASES,
    MAX_BYTES,
    Folder,
    Laid,
    Partial,
    finite,
    map_file,
    verify,
)

log = logging.getLogger(__name__)

KEEP_AFTER_S = 0.05
"""A transfer that takes longer is kept on disk as it comes, for a later life of this process."""

_LACKING_S = 5.0
"""Time between two looks for a frozen base that is not there."""

OnReady = Callable[[str, WeightsReady], None]


class Puller(Protocol):
    """Where weights come from: ``comms.weight_puller.WeightPuller``. One caller at a time."""

    def pull(self, want: Wanted) -> Transfer | None:
        """Wait until what is wanted begins to come; None: ``wake`` was called."""

    def wake(self) -> None:
        """Have ``pull`` return."""

    def close(self) -> None:
        """End the connection."""

    def stats(self) -> Mapping[str, float]:
        """Return counters."""


class WeightClient:
    """Keeps the policies of a robot host up to date. Thread-safe.

    Args:
        puller: makes a connection, one per policy.
        directory: where versions are laid down.
        on_ready: called with (policy, where it lies) for each version that is there.
        keep: versions per policy that stay on the disk.
        near: the store's directory, where this host shares its disk.
        pack: whether tensors may come compressed, which pays on a slow line only.
    """

    def __init__(
        self,
        puller: Callable[[], Puller],
        directory: Path,
        on_ready: OnReady,
        *,
        keep: int = 8,
        near: Path | None = None,
        pack: bool = True,
    ):
        self._puller, self._directory, self._on_ready = puller, directory, on_ready
        self._keep, self._near, self._pack = keep, near, pack
        self._lock = threading.Lock()
        self._followers: dict[str, Follower] = {}
        self._open = False

    def start(self) -> None:
        """Begin to fetch."""
        with self._lock:
            self._open = True
            followers = list(self._followers.values())
        for follower in followers:
            follower.start()

    def follow(self, policy: str) -> None:
        """Keep a policy up to date from now on."""
        with self._lock:
            if policy in self._followers:
                return
            follower = Follower(
                policy,
                self._puller(),
                self._directory,
                self._on_ready,
                keep=self._keep,
                near=self._near,
                pack=self._pack and self._near is None,
            )
            self._followers[policy] = follower
            started = self._open
        if started:
            follower.start()

    def need(self, policy: str, version: int) -> None:
        """Ask for one version, whatever its age."""
        self.follow(policy)
        self._followers[policy].need(version)

    def close(self) -> None:
        """Stop fetching."""
        with self._lock:
            followers = list(self._followers.values())
        for follower in followers:
            follower.close()

    def stats(self) -> dict[str, float]:
        """Return counters and gauges, summed over the policies."""
        with self._lock:
            followers = list(self._followers.values())
        figures: dict[str, float] = {}
        for follower in followers:
            for name, value in follower.stats().items():
                figures[name] = figures.get(name, 0.0) + value
        return figures


class Follower:
    """Keeps one policy up to date, in a thread of its own; see ``WeightClient``."""

    def __init__(
        self,
        policy: str,
        puller: Puller,
        directory: Path,
        on_ready: OnReady,
        *,
        keep: int,
        near: Path | None,
        pack: bool,
    ):
        self._policy, self._puller, self._on_ready = policy, puller, on_ready
        self._bases = directory / BASES
        self._folder = Folder(directory / policy)
        self._partial = Partial(directory / policy / "coming.body")
        self._keep, self._near, self._pack = keep, near, pack
        self._here: dict[int, Laid] = {}
        """In the order in which they were asked for last: an evaluation pins an old one."""
        self._newest = 0
        """Newest version that was looked at, taken or refused."""
        self._pins: set[int] = set()
        self._lock = threading.Lock()
        self._pause = threading.Event()
        self._trying = 0
        """Version that is coming."""
        self._again = False
        """Whether what failed is to be tried in another way."""
        self._open = True
        self._figures = dict.fromkeys(("refused", "failures", "fetch_s", "lacking_bases"), 0.0)
        self._thread = threading.Thread(target=self._run, name=f"weights {policy}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def need(self, version: int) -> None:
        """Ask for one version, whatever its age; thread-safe."""
        with self._lock:
            self._pins.add(version)
        self._puller.wake()

    def close(self) -> None:
        """Stop; thread-safe."""
        self._open = False
        self._pause.set()
        self._puller.wake()
        self._puller.close()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def stats(self) -> dict[str, float]:
        """Return counters and gauges."""
        names = {name: f"weights_{name}" for name in self._figures}
        figures = {names[name]: value for name, value in self._figures.items()}
        return {**self._puller.stats(), **figures, "weights_here": float(len(self._here))}

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        self._restore()
        backoff = Backoff(base_s=0.1, cap_s=5.0)
        while self._open:
            want = self._want()
            if want.version in self._here:
                if want.version == self._partial.version:
                    self._partial.drop()  # an earlier life ended between laying it down and this
                self._ready(self._here[want.version], time.monotonic())
                continue
            self._trying = want.version
            try:
                transfer = self._puller.pull(want)
                if transfer is not None:
                    self._receive(want, transfer)
                    backoff.failures = 0
            except MissingError as error:
                self._gone(want, error)
            except (DamageError, SpecError) as error:
                self._refuse(want, error)
                if not self._trying:
                    self._pause.wait(backoff.died(0.0))
            except UserSystemError as error:
                log.info("weights of %s: %s", self._policy, error)
                self._figures["failures"] += 1
                self._pause.wait(backoff.died(0.0))
            except Exception:  # top of a thread: without it this host would never learn again
                log.exception("weights of %s: unforeseen error; they come anew", self._policy)
                self._figures["failures"] += 1
                self._start_over()
                self._pause.wait(backoff.died(0.0))

    def _start_over(self) -> None:
        """Forget what is coming: it may be what the error comes from, and a newer one is not."""
        try:
            self._partial.drop()
        except OSError as error:
            log.error("weights of %s: %s", self._policy, error)

    def _restore(self) -> None:
        """Act with what an earlier life of this host had, until there is something newer."""
        self._partial.open()
        found = self._folder.open()
        self._here = {laid.manifest.version: laid for laid in found}
        for laid in found:
            self._newest = max(self._newest, laid.manifest.version)
            self._ready(laid, time.monotonic())

    def _want(self) -> Wanted:
        """Return what is wanted next: a pinned version, what broke, or the next newer one."""
        with self._lock:
            pin = min(self._pins, default=0)
        partial, held = self._partial, max(self._here, default=0)
        if not pin and partial.body:
            if partial.held and partial.held not in self._here:
                partial.drop()
            else:
                held = partial.held
        version = pin or partial.version
        comes = bool(partial.body) and version == partial.version and held == partial.held
        return Wanted(
            self._policy,
            version=version,
            newer_than=0 if version else self._newest,
            held=held,
            held_hash=self._here[held].manifest.hash if held else "",
            body=partial.body if comes else "",
            offset=len(partial.data) if comes else 0,
            pack=self._pack,
            near=self._near is not None,
        )

    def _receive(self, want: Wanted, transfer: Transfer) -> None:
        """Take a version in, check it, and lay it down."""
        manifest, began = transfer.manifest, time.monotonic()
        self._trying = manifest.version
        self._check_fit(manifest, transfer.travels)
        self._check_bases(manifest)
        partial = self._partial
        partial.begin(transfer.body, manifest.version, want.held, transfer.offset)
        for data in transfer:
            slow = time.monotonic() - began > KEEP_AFTER_S
            partial.add(data, keep=slow or transfer.offset > 0)
        held = self._here.get(want.held)
        laid = self._folder.lay(manifest, *self._decode(transfer, held), held)
        partial.drop()
        self._newest = max(self._newest, manifest.version)
        self._figures["fetch_s"] = time.monotonic() - began
        self._ready(laid, began - transfer.age_s)

    def _check_fit(self, manifest: Manifest, travels: tuple[Travel, ...]) -> None:
        """Refuse another architecture, and more bytes than the tensors have, before they come.

        Raises:
            SpecError: names, shapes or dtypes are not those that the policy has.
            DamageError: what comes cannot be these tensors.
        """
        known = next(iter(self._here.values()), None)
        if known is not None:
            different = _shapes(known.manifest) ^ _shapes(manifest)
            if different:
                texts = sorted(f"{m}/{n} {d}{list(s)}" for m, n, d, s in different)
                raise SpecError(
                    f"weights of another architecture than {self._policy!r} has",
                    got=", ".join(texts[:4]),
                )
        total = 0
        for entry, travel in zip(manifest.tensors, travels, strict=True):
            size = _size(entry)
            total += size
            if travel.size > size:
                raise DamageError("more bytes than a tensor has", got=travel.size, allowed=size)
        if total > MAX_BYTES:
            raise SpecError("weights are too large", got=total, allowed=MAX_BYTES)

    def _check_bases(self, manifest: Manifest) -> None:
        """Make sure that the frozen bases are here: they never travel.

        Raises:
            MissingError: says which is missing, and where it belongs.
        """
        for name, hash in manifest.bases.items():
            place = self._bases / Path(hash).name
            if not place.exists():
                raise MissingError(
                    f"policy {self._policy!r} needs the frozen base {name!r}, which never travels",
                    got=f"nothing at {place}",
                    todo="Put the base with that hash there on this host.",
                )

    def _decode(
        self, transfer: Transfer, held: Laid | None
    ) -> tuple[dict[str, Buffer], dict[str, tuple[Path, int]]]:
        """Return the tensors that came by hash, verified, and where those lie that are near.

        Raises:
            DamageError: what came is not what the manifest says.
            SpecError: numbers that are not finite.
        """
        fresh: dict[str, Buffer] = {}
        near: dict[str, tuple[Path, int]] = {}
        files: dict[str, tuple[Path, memoryview]] = {}
        body, at = memoryview(self._partial.data), 0
        # A hash stands for dtype and shape too, but only where it was held against them.
        known = {e.hash: _kind(e) for e in held.manifest.tensors} if held else {}
        for entry, travel in zip(transfer.manifest.tensors, transfer.travels, strict=True):
            if travel.form == HELD:
                if known.get(entry.hash) != _kind(entry):
                    raise DamageError(
                        f"tensor {entry.module}/{entry.name} did not come",
                        got=known.get(entry.hash, "nothing of that hash"),
                        allowed=_kind(entry),
                    )
            elif travel.form == NEAR:
                size = _size(entry)
                if travel.file not in files:
                    path = self._near_file(travel)
                    files[travel.file] = path, map_file(path)
                place, view = files[travel.file]
                there = view[travel.at : travel.at + size]
                # The store has verified its hash in this very file.
                if len(there) != size or checksum(there) != travel.check:
                    raise DamageError(f"{place} is not what the store says it is")
                if not finite(entry.dtype, there):
                    raise SpecError(f"tensor {entry.module}/{entry.name} is not finite")
                near[entry.hash] = place, travel.at
            else:
                coded = body[at : at + travel.size]
                base = held.tensor(entry) if held else None
                data = deltas.decode(travel.form, coded, _size(entry), width(entry.dtype), base)
                verify(entry, data)
                fresh[entry.hash] = data
                at += travel.size
            known[entry.hash] = _kind(entry)
        return fresh, near

    def _near_file(self, travel: Travel) -> Path:
        """Return a file of the store.

        Raises:
            DamageError: it points outside, or was not asked for.
        """
        path = Path(travel.file)
        if self._near is None or path.is_absolute() or ".." in path.parts:
            raise DamageError("a tensor is said to lie where it cannot", got=travel.file[:200])
        if not (self._near / path).is_file():
            # It may be another machine that only looks like the store's: from now on over the wire.
            log.warning("%s is not there; weights of %s are sent", self._near / path, self._policy)
            self._near, self._again = None, True
            raise DamageError("a tensor does not lie where it should", got=str(path))
        return self._near / path

    def _ready(self, laid: Laid, offered_s: float) -> None:
        version = laid.manifest.version
        with self._lock:
            self._here.pop(version, None)
            self._here[version] = laid
            self._pins.discard(version)
            newest = max(self._here)
            others = [v for v in self._here if v != newest]
            for gone in others[: max(0, len(others) + 1 - self._keep)]:
                del self._here[gone]
        self._on_ready(self._policy, WeightsReady(version, str(laid.path), offered_s))
        # Removing files can wait for the disk; robots that wait for these weights need not.
        self._folder.keep(self._here.values())

    def _gone(self, want: Wanted, error: MissingError) -> None:
        """A version is not there any more, or a frozen base is not here."""
        if want.body:
            self._partial.drop()
            return
        log.warning("weights of %s: %s", self._policy, error)
        with self._lock:
            pinned = want.version in self._pins
            self._pins.discard(want.version)
        if not pinned:
            self._figures["lacking_bases"] += 1
            self._pause.wait(_LACKING_S)

    def _refuse(self, want: Wanted, error: StoreError | SpecError) -> None:
        """What came is not taken, now or later; what was begun by an earlier life comes anew."""
        again, self._again = self._again or bool(want.offset), False
        self._partial.drop()
        if again:
            log.info("weights of %s come anew: %s", self._policy, error)
            return
        log.warning("weights of %s are refused: %s", self._policy, error)
        self._figures["refused"] += 1
        with self._lock:
            self._pins.discard(want.version)
        self._newest = max(self._newest, self._trying)


def _shapes(manifest: Manifest) -> set[tuple[str, str, str, tuple[int, ...]]]:
    return {(e.module, e.name, e.dtype, tuple(e.shape)) for e in manifest.tensors}


def _kind(entry: TensorEntry) -> tuple[str, tuple[int, ...]]:
    return entry.dtype, tuple(entry.shape)


def _size(entry: TensorEntry) -> int:
    return _size_of(entry.dtype, tuple(entry.shape))


@lru_cache(1024)
def _size_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the same for the tensors of each version; the architecture stays."""
    return checked_size(dtype, shape, MAX_BYTES)
