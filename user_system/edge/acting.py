"""Which weights act on one robot: the newest known, or the one version that an evaluation pins."""

import collections
import time

from user_system.edge.messages import WeightsNews, WeightsReady
from user_system.edge.worker_client import Loaded

_REMEMBERED = 7
"""Versions known beside the newest; no more than ``WeightClient`` keeps files of."""


class ActingWeights:
    """Decides what to load, and measures how old weights are when they begin to act.

    Only newer versions are taken from outside, so what acts moves forward; an evaluation of a
    pinned version is the one exception, and afterwards the newest acts again.
    """

    def __init__(self) -> None:
        self.version = 0
        """Version that acts; 0: what the policy began with."""
        self._known: dict[int, WeightsReady] = {}
        self._newest = 0
        self._loading: WeightsReady | None = None
        self._refused: dict[int, str] = {}
        self._elsewhere = False
        """Whether the policy and the choice of its weights are at the head."""
        self._pinning = False
        self._pinned_s = float("-inf")
        """When a pin was last in force."""
        self._ages: collections.deque[float] = collections.deque(maxlen=1000)
        self._news: WeightsNews | None = None
        """What the hub said last about the newest version."""
        self._newer_s: float | None = None
        """When the first version was offered that is newer than what acts; None: none is known."""
        self._began_s = time.monotonic()

    def found(self, ready: WeightsReady) -> None:
        """Take note of a version that lies on this host's disk."""
        # In the order in which they were found last: an evaluation pins an old one.
        self._known.pop(ready.version, None)
        self._known[ready.version] = ready
        self._newest = max(self._newest, ready.version)
        for version in [v for v in self._known if v != self._newest][:-_REMEMBERED]:
            del self._known[version]

    def heard(self, news: WeightsNews) -> None:
        """Take note of which version is the newest."""
        self._news = news
        if news.version <= self.version:
            self._newer_s = None
        elif self._newer_s is None:
            self._newer_s = news.offered_s

    @property
    def stale_s(self) -> float:
        """For how long what acts is not, or not known to be, the newest, wall s.

        Counted from when something newer was offered, or else from when the hub last said that
        there is nothing newer: while it is away the age grows. 0 where no weights exist yet.
        """
        now = time.monotonic()
        if self._newer_s is not None:
            return max(0.0, now - self._newer_s)
        if self._news is not None:
            return max(0.0, now - self._news.heard_s)
        return now - self._began_s if self.version else 0.0

    def too_old(self, limit_s: float | None, policy: str) -> str:
        """Return why the policy may not act with what it has; empty: it may.

        Args:
            limit_s: for how long it may not be known to be the newest; None: as long as need be.
            policy: its name, for people.
        """
        stale_s = self.stale_s
        if limit_s is None or stale_s <= limit_s:
            return ""
        return (
            f"Version {self.version} of {policy!r} has not been known as the newest for "
            f"{stale_s:.0f} s, allowed: {limit_s:g} s. It goes on by itself with newer weights; "
            "see to the link to the head, and to the learner."
        )

    def knows(self, version: int) -> bool:
        """Whether ``version`` lies on this host's disk; 0, the newest, need not be asked for."""
        return version == 0 or self._elsewhere or version in self._known

    def due(self, pinned: int) -> WeightsReady | None:
        """Return what to load now; None: nothing, or a load is under way.

        Args:
            pinned: the only version wanted; 0: the newest.
        """
        wanted = pinned or self._newest
        if pinned:
            self._pinned_s = time.monotonic()
        if self._elsewhere or self._loading or wanted in {self.version, *self._refused}:
            return None
        self._pinning = bool(pinned)
        self._loading = self._known.get(wanted)
        return self._loading

    def loaded(self, news: Loaded) -> None:
        """Take note of what the worker made of a load."""
        ready, self._loading = self._loading, None
        if news.error:
            self._refused[news.version] = news.error
            return
        fresh = news.version > self.version
        self.version = news.version
        if self._news is not None:
            behind = self._news.version > self.version
            self._newer_s = self._news.offered_s if behind else None
        if ready is not None and fresh and not self._pinning:
            # While an evaluation pins another version nothing newer may act: that is no delay.
            self._ages.append(time.monotonic() - max(ready.offered_s, self._pinned_s))

    def acts(self, version: int) -> None:
        """Take note of what acts at the head, where policy and weights are."""
        self.version, self._elsewhere = version, True

    def worker_lost(self) -> None:
        """A new worker begins with what its policy begins with."""
        self.version, self._loading = 0, None

    def stats(self) -> dict[str, float]:
        """Return version, refusals, and the ages at which weights began to act, s."""
        figures = {
            "version": float(self.version),
            "weights_refused": float(len(self._refused)),
            "weights_stale_s": self.stale_s,
        }
        if self._ages:
            ages = sorted(self._ages)
            figures["weights_age_s"] = self._ages[-1]
            figures["weights_age_p99_s"] = ages[min(len(ages) - 1, int(0.99 * len(ages)))]
        return figures
