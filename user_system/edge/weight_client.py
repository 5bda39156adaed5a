"""Weights on their way to a robot host: announced, fetched, verified, laid down for the workers.

An announcement says which version is the newest; it is repeated every second, so losing one costs
nothing. What is fetched is whole and verified before a robot's loop hears of it, and lies in a file
that the policy worker reads itself: weights never pass through the agent's loops. Versions move
forward only; an older one is fetched when an evaluation is pinned to it, and never otherwise.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from user_system.codec import weights as codec
from user_system.core.errors import DamageError, LinkError, UserSystemError
from user_system.core.supervise import Backoff
from user_system.core.types import Weights
from user_system.edge.messages import WeightsReady

log = logging.getLogger(__name__)


class Fetcher(Protocol):
    """Where weights come from; ``comms.weights.WeightFetcher`` is one. One caller at a time."""

    def fetch(self, policy: str, version: int = 0) -> Weights:
        """Return a version, the newest for 0."""


def verify(weights: Weights) -> None:
    """Make sure that weights are what their version stands for, and finite.

    Raises:
        DamageError: they are not.
    """
    if codec.weights_hash(weights.modules, weights.statistics) != weights.hash:
        raise DamageError("weights do not have their hash", got=weights.version)
    for module, tensors in {**weights.modules, "statistics": weights.statistics}.items():
        for name, tensor in tensors.items():
            if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
                raise DamageError("weights are not finite", got=f"{module}/{name}")


class WeightClient:
    """Fetches announced versions in a thread of its own. Thread-safe.

    Args:
        fetcher: where weights come from.
        directory: where they are laid down, one file per version.
        on_ready: called with (policy, where it lies) for each version that is there.
        keep: versions per policy that stay on the disk.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        directory: Path,
        on_ready: Callable[[str, WeightsReady], None],
        keep: int = 8,
    ):
        self._fetcher, self._directory, self._on_ready = fetcher, directory, on_ready
        self._keep = keep
        self._news = threading.Condition()
        self._announced: dict[str, tuple[int, float]] = {}
        self._wanted: set[tuple[str, int]] = set()
        self._here: dict[tuple[str, int], WeightsReady] = {}
        self._bad: dict[tuple[str, int], str] = {}
        self._thread = threading.Thread(target=self._run, name="weights", daemon=True)
        self._open = True
        self._fetch_s = 0.0
        self._failures = 0

    def start(self) -> None:
        """Begin to fetch."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def announce(self, policy: str, version: int, age_s: float) -> None:
        """Hear that ``version`` is the newest and was offered ``age_s`` ago."""
        with self._news:
            if version > self._announced.get(policy, (0, 0.0))[0]:
                self._announced[policy] = (version, time.monotonic() - age_s)
                self._news.notify()

    def need(self, policy: str, version: int) -> None:
        """Ask for one version, whatever its age."""
        with self._news:
            self._wanted.add((policy, version))
            self._news.notify()

    def _run(self) -> None:
        backoff = Backoff(base_s=0.1, cap_s=5.0)
        while (work := self._next()) is not None:
            policy, version, offered = work
            began = time.monotonic()
            try:
                ready = self._fetch(policy, version, offered)
            except LinkError as error:
                log.info("weights %s %d: %s", policy, version, error)
                self._failures += 1
                self._pause(backoff.died(0.0))
                continue
            except UserSystemError as error:
                log.warning("weights %s %d are refused: %s", policy, version, error)
                with self._news:
                    self._bad[policy, version] = str(error)
                    self._wanted.discard((policy, version))
                continue
            backoff.failures = 0
            self._fetch_s = time.monotonic() - began
            self._on_ready(policy, ready)

    def _next(self) -> tuple[str, int, float] | None:
        """Wait for the next version to fetch: pinned ones first, then the newest of each policy."""
        with self._news:
            while self._open:
                for policy, version in sorted(self._wanted):
                    return policy, version, time.monotonic()
                for policy, (version, offered) in self._announced.items():
                    if not {(policy, version)} & (self._here.keys() | self._bad.keys()):
                        return policy, version, offered
                self._news.wait(1.0)
        return None

    def _fetch(self, policy: str, version: int, offered: float) -> WeightsReady:
        ready = self._here.get((policy, version))
        if ready is None:
            weights = self._fetcher.fetch(policy, version)
            if (weights.policy, weights.version) != (policy, version):
                raise DamageError(
                    "other weights came than were asked for",
                    got=(weights.policy, weights.version),
                    allowed=(policy, version),
                )
            verify(weights)
            ready = WeightsReady(version, str(self._lay_down(weights)), offered)
        with self._news:
            # In the order in which they were asked for last: an evaluation pins an old one.
            self._here.pop((policy, version), None)
            self._here[policy, version] = ready
            self._wanted.discard((policy, version))
        self._tidy(policy)
        return ready

    def _lay_down(self, weights: Weights) -> Path:
        """Write the file whole or not at all; not synced, since it can be fetched again."""
        path = self._directory / f"{weights.policy}-{weights.version}.safetensors"
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        tree = {field: getattr(weights, field) for field in Weights.__slots__}
        temporary.write_bytes(codec.to_bytes(tree))
        temporary.replace(path)
        return path

    def _tidy(self, policy: str) -> None:
        with self._news:
            newest = max(v for p, v in self._here if p == policy)
            others = [key for key in self._here if key[0] == policy and key[1] != newest]
            gone = [self._here.pop(key) for key in others[: max(0, len(others) + 1 - self._keep)]]
        for ready in gone:
            Path(ready.path).unlink(missing_ok=True)

    def _pause(self, seconds: float) -> None:
        with self._news:
            self._news.wait(seconds)

    def close(self) -> None:
        """Stop fetching."""
        with self._news:
            self._open = False
            self._news.notify()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def stats(self) -> dict[str, float]:
        """Return counters and gauges."""
        return {
            "weights_here": float(len(self._here)),
            "weights_bad": float(len(self._bad)),
            "weights_fetch_s": self._fetch_s,
            "weights_failures": float(self._failures),
        }
