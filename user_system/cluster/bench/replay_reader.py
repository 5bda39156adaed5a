"""A reader that has just been started: its first batch, its first answer, its checkpoints.

    python -m user_system.cluster.bench.replay_reader

What it imports is loaded before it is asked: that is the same for every learner, and is paid once.
"""

import time
from pathlib import Path
from typing import Any, cast

import numpy as np

from learners.checkpoints import Checkpoints
from learners.runner import Runner
from user_system.cluster.bench.replay_backends import SEED, Plain
from user_system.cluster.bench.replay_child import private_mb, serve
from user_system.cluster.bench.replay_work import Sizes, check
from user_system.core.errors import DamageError, StoreError
from user_system.core.interfaces import Draw, Learner
from user_system.replay import store, verify
from user_system.replay.sampler import ReplayData

_TENSORS = 40
_DRAWS = 4
"""Batches drawn, and as many consumed, before a checkpoint."""


def hello() -> None:
    """Say that everything is imported."""


def first_batch(path: str, sizes: dict[str, Any]) -> dict[str, float]:
    """Open the store and draw one batch; return how long both took."""
    n = Sizes(**sizes).batch
    began = time.perf_counter()
    with store.reader(Path(path)).open() as env:
        data = ReplayData(env, seed=SEED)
        data.refresh()
        opened = time.perf_counter()
        batch = data.draw(Draw(n=n))
        done = time.perf_counter()
        check(batch)
    return {"open_s": opened - began, "batch_s": done - opened, "total_s": done - began}


def first_batch_plain(path: str, sizes: dict[str, Any]) -> dict[str, float]:
    """Do the same with the plain LMDB loop."""
    began = time.perf_counter()
    backend = Plain(Sizes(**sizes), Path(path))
    opened = time.perf_counter()
    backend.batch()
    done = time.perf_counter()
    backend.close()
    return {"open_s": opened - began, "batch_s": done - opened, "total_s": done - began}


def first_count(path: str) -> dict[str, float]:
    """Open the store and count its steps; return how long that took and what it came to."""
    began = time.perf_counter()
    with store.reader(Path(path)).open() as env:
        count = ReplayData(env, seed=SEED).count("all")
        took = time.perf_counter() - began
        return {"seconds": took, "count": float(count), "private_mb": private_mb()}


def check_all(path: str, images: int) -> float:
    """Check every byte of a store; return how long that took.

    Raises:
        DamageError: not so many images were found, or damaged ones.
    """
    began = time.perf_counter()
    findings = verify.verify(path)
    took = time.perf_counter() - began
    if not findings.ok or findings.images != images:
        raise DamageError(
            "a check did not find what was stored",
            got=f"{findings.images} images, {len(findings.damaged)} damaged",
            allowed=f"{images} images",
        )
    return took


class _Learner:
    """What a checkpoint needs of a learner: a state of a given size."""

    def __init__(self, size: int):
        rng = np.random.Generator(np.random.PCG64(SEED))
        each = max(1, size // 4 // _TENSORS)
        self._state = {f"t{i}": rng.standard_normal(each, np.float32) for i in range(_TENSORS)}

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        return {"weights": self._state}


def save(path: str, directory: str, sizes: dict[str, Any]) -> dict[str, list[float]]:
    """Save checkpoints as a learner's loop does; return how long it stood still for each."""
    made = Sizes(**sizes)
    with store.reader(Path(path)).open() as env:
        data = ReplayData(env, seed=SEED)
        for _ in range(_DRAWS):
            data.draw(Draw(n=made.batch))
            data.consume(Draw(n=made.batch))
        learner = cast(Learner, _Learner(made.learner_bytes))
        runner = Runner(
            learner,
            data,
            publish=_no_publishing,
            checkpoints=Checkpoints(Path(directory)),
            report=lambda figures: None,
        )
        times = []
        for i in range(made.saves):
            data.draw(Draw(n=made.batch))
            runner.updates = i
            began = time.perf_counter()
            runner.save()
            times.append(time.perf_counter() - began)
    return {"seconds": times}


def _no_publishing(modules: object, statistics: object, notes: object) -> int:
    raise StoreError("the benchmark publishes nothing")


def main() -> None:
    """Answer."""
    questions = (hello, first_batch, first_batch_plain, first_count, check_all, save)
    serve({question.__name__: question for question in questions})


if __name__ == "__main__":
    main()
