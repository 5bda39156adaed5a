"""What batches are drawn from: the store, and three references, each in a process of its own.

    python -m user_system.cluster.bench.replay_backends

The ring is what a buffer in memory can do at best: arrays made once, gathered into arrays made
once. The plain loop is what LMDB gives without a thought: one value per observation, one ``get``
after the other. Copying as many bytes from one place to another is what no buffer undercuts. All
deliver the same fields: both images and the state before and after, action, reward.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from user_system.cluster.bench.replay_child import private_mb, serve
from user_system.cluster.bench.replay_work import ACTION, CAMERAS, STATE, Recorder, Sizes, check
from user_system.core.errors import ConfigError
from user_system.core.interfaces import Data, Draw
from user_system.core.types import Array
from user_system.replay import store
from user_system.replay.env import Env, Txn
from user_system.replay.sampler import FOLLOW_S, ReplayData

SEED = 3
_WRITE = 32
"""Observations per transaction of the plain LMDB."""
_ENOUGH = 12
"""Times that a store is drawn from as often as it has steps, before it counts as warm anyway."""


class Backend(Protocol):
    """Something that delivers batches."""

    def batch(self) -> object:
        """Deliver one; what it returns is held until the next one is asked for."""

    def warm(self) -> None:
        """Draw until everything that is slow once has been done."""

    def close(self) -> None:
        """Let go of files."""


class _Steps:
    """Which observations belong to a step, and arrays for a batch of them."""

    def __init__(self, sizes: Sizes):
        steps = np.arange(sizes.steps)
        self.now = steps + steps // sizes.episode
        self.next = self.now + 1
        self.observations = sizes.steps + sizes.steps // sizes.episode
        self.rng = np.random.Generator(np.random.PCG64(SEED))
        self.maker = Recorder(sizes)
        self.action, self.reward = self.maker.actions(sizes.steps), np.zeros(sizes.steps, "f4")
        self.n = sizes.batch
        shapes: dict[str, tuple[Any, tuple[int, ...]]] = {"state": (np.float32, (STATE,))}
        shapes |= dict.fromkeys(CAMERAS, (np.uint8, (sizes.side, sizes.side, 3)))
        self.shapes = shapes
        self.seen, self.after = (
            {name: np.empty((self.n, *tail), dtype) for name, (dtype, tail) in shapes.items()}
            for _ in range(2)
        )
        self.low = {
            "action": np.empty((self.n, ACTION), np.float32),
            "reward": np.empty(self.n, np.float32),
        }

    def pick(self) -> Array:
        """Return the steps of a batch, and deliver their actions and rewards."""
        picked = self.rng.integers(0, len(self.now), self.n)
        np.take(self.action, picked, axis=0, out=self.low["action"], mode="clip")
        np.take(self.reward, picked, axis=0, out=self.low["reward"], mode="clip")
        return picked


class Ring:
    """Arrays in memory, gathered with ``np.take`` into arrays made before.

    With ``mode="raise"`` NumPy would buffer the output, which takes 2.4 times as long.
    """

    def __init__(self, sizes: Sizes, path: Path | None = None):
        self._steps = steps = _Steps(sizes)
        self.columns = {
            name: np.empty((steps.observations, *tail), dtype)
            for name, (dtype, tail) in steps.shapes.items()
        }
        for first in range(0, steps.observations, sizes.episode):
            count = min(sizes.episode, steps.observations - first)
            for name, values in steps.maker.observations(first, count).items():
                self.columns[name][first : first + count] = values

    def batch(self) -> object:
        """Deliver one batch."""
        steps = self._steps
        picked = steps.pick()
        for at, out in ((steps.now[picked], steps.seen), (steps.next[picked], steps.after)):
            for name, column in self.columns.items():
                np.take(column, at, axis=0, out=out[name], mode="clip")
        return steps.seen, steps.after, steps.low

    def warm(self) -> None:
        """Touch the arrays that batches go to."""
        self.batch()

    def close(self) -> None:
        """There is nothing to let go of."""


class Copy:
    """As many bytes as a batch has, copied from one place to another."""

    def __init__(self, sizes: Sizes, path: Path | None = None):
        size = 2 * sizes.batch * (STATE * 4 + len(CAMERAS) * sizes.image_bytes)
        self._from, self._to = np.ones(size, np.uint8), np.zeros(size, np.uint8)

    def batch(self) -> object:
        """Copy."""
        np.copyto(self._to, self._from)
        return self._to

    def warm(self) -> None:
        """Touch both places."""
        self.batch()

    def close(self) -> None:
        """There is nothing to let go of."""


class Plain:
    """LMDB with one value per observation, read by a loop of ``get`` into arrays made before."""

    KIND, TABLE = "bench", "observations"

    def __init__(self, sizes: Sizes, path: Path):
        self._steps = steps = _Steps(sizes)
        self._sizes = sizes
        self._order = (*CAMERAS, "state")
        if not path.exists():
            self._write(path)
        self._env = Env(path, self.KIND, (self.TABLE,), readonly=True).open()
        self._out = [
            [_bytes(out[name]) for name in self._order] for out in (steps.seen, steps.after)
        ]
        self._widths = [len(view) // steps.n for view in self._out[0]]
        self._starts = np.cumsum([0, *self._widths]).tolist()

    def _write(self, path: Path) -> None:
        steps = self._steps
        with Env(path, self.KIND, (self.TABLE,)).open(create=True) as env:
            for first in range(0, steps.observations, _WRITE):
                count = min(_WRITE, steps.observations - first)
                values = steps.maker.observations(first, count)

                def work(
                    txn: Txn, first: int = first, values: Mapping[str, Array] = values
                ) -> None:
                    for i in range(len(values["state"])):
                        value = b"".join(values[name][i].tobytes() for name in self._order)
                        key = (first + i).to_bytes(8, "big")
                        txn.put(key, value, db=env.table(self.TABLE), append=True)

                env.write(work)

    def batch(self) -> object:
        """Deliver one batch."""
        steps, table = self._steps, self._env.table(self.TABLE)
        picked = steps.pick()
        with self._env.read() as txn:
            for out, at in zip(self._out, (steps.now[picked], steps.next[picked]), strict=True):
                for i, number in enumerate(at.tolist()):
                    value = txn.get(number.to_bytes(8, "big"), db=table)
                    for view, width, start in zip(out, self._widths, self._starts, strict=False):
                        view[i * width : (i + 1) * width] = value[start : start + width]
        return steps.seen, steps.after, steps.low

    def warm(self) -> None:
        """Map every page."""
        with self._env.read() as txn:
            for number in range(self._steps.observations):
                bytes(txn.get(number.to_bytes(8, "big"), db=self._env.table(self.TABLE)))
        self.batch()

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def _bytes(array: Array) -> memoryview:
    """Return an array as bytes to be written."""
    return array.reshape(-1).data.cast("B")


def _window(env: Env) -> ReplayData:
    """Return a window on the store as learners have it."""
    data = ReplayData(env, seed=SEED)
    data.follow_s = FOLLOW_S
    return data


class Stored:
    """The replay buffer, as a learner draws from it.

    Args:
        sizes: of what is in the store.
        path: of the store.
        data: drawn from instead of the store, by tests.
    """

    def __init__(self, sizes: Sizes, path: Path, data: Data | None = None):
        self._sizes = sizes
        self._env = store.reader(path).open()
        self.data: Data = data or _window(self._env)
        self._request = Draw(n=sizes.batch)

    def batch(self) -> object:
        """Draw one batch."""
        return self.data.draw(self._request)

    def warm(self) -> None:
        """Draw until each step, and so each image, was drawn: all is checked and mapped then."""
        seen: set[int] = set()
        for _ in range(_ENOUGH * (1 + self._sizes.steps // self._sizes.batch)):
            batch = self.data.draw(self._request)
            check(batch)
            seen.update(batch.ids.tolist())
            del batch  # a learner holds one at a time, too
            if len(seen) >= self._sizes.steps:
                return

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


BACKENDS: Mapping[str, Any] = {"store": Stored, "ring": Ring, "plain": Plain, "copy": Copy}


def rate(backend: Backend, n: int, seconds: float) -> dict[str, float]:
    """Deliver batches of ``n`` for so long; return transitions/s and what it took.

    ``cpus`` is processor time over wall time: above 1 where more than one thread works.
    """
    held: list[object] = []
    times: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()
    while (now := time.perf_counter()) < began + seconds or not times:
        held.clear()  # a learner drops a batch before it asks for the next one
        held.append(backend.batch())
        times.append(time.perf_counter() - now)
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {
        "rate": n * len(times) / took,
        "cpus": cpu / took,
        "longest_s": max(times),
        "private_mb": private_mb(),  # with a batch in hand
    }


class _Host:
    """What this process is asked for."""

    def __init__(self) -> None:
        self._backend: Backend | None = None
        self._sizes = Sizes()

    def prepare(self, kind: str, sizes: dict[str, Any], path: str) -> dict[str, float]:
        """Fill it and draw until it is warm."""
        began = time.perf_counter()
        self._sizes = Sizes(**sizes)
        self._backend = BACKENDS[kind](self._sizes, Path(path))
        self._backend.warm()
        return {"seconds": time.perf_counter() - began}

    def rate(self, seconds: float) -> dict[str, float]:
        """Deliver batches for so long."""
        if self._backend is None:
            raise ConfigError("nothing was prepared")
        return rate(self._backend, self._sizes.batch, seconds)

    def close(self) -> None:
        """Let go of files."""
        if self._backend is not None:
            self._backend.close()


def main() -> None:
    """Serve one backend."""
    host = _Host()
    try:
        serve({"prepare": host.prepare, "rate": host.rate})
    finally:
        host.close()


if __name__ == "__main__":
    main()
