"""The single-process loop that a run of the demo is compared with, in a process of its own.

The same learner, its settings, robot, task, schedule, helper and seed; one thread of torch on
either side. Both run on an otherwise idle machine, one after the other.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from user_system.cluster.bench.demo_run import GIVE_UP_STEPS
from user_system.cluster.manifest import Manifest
from user_system.cluster.parse import dump
from user_system.cluster.process import write_private
from user_system.core.errors import ConfigError, LinkError
from user_system.core.helping import HelpConfig

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Single:
    """What the single-process loop reached."""

    env_steps: float
    """At the freeze; infinite where there was none."""
    learn_s: float
    """From the first step to the freeze."""

    @property
    def froze(self) -> bool:
        """Whether it learned what it should."""
        return math.isfinite(self.learn_s)


def config(manifest: Manifest, seed: int) -> Mapping[str, Any]:
    """Return the ``SingleConfig`` of a loop that does what the manifest's run does.

    As plain values: this process must not import what the loop needs, since pages shared with the
    system's processes would make those look smaller.

    Raises:
        ConfigError: the manifest has no learner that the single-process loop runs.
    """
    learner = next(iter(manifest.learners.values()))
    if learner.kind != "rlpd":
        raise ConfigError("the single-process loop runs rlpd", got=learner.kind)
    operator = next(iter(manifest.operators.values()), None)
    habit = operator.help if operator is not None else HelpConfig()
    rule = manifest.schedule.rule(manifest.name, next(iter(manifest.tasks)))
    schedule = replace(rule, seed=seed, final_episodes=0, give_up_steps=GIVE_UP_STEPS)
    help_ = replace(habit, seed=seed)
    parts = {"seed": seed, "learner": learner.config, "schedule": schedule, "help": help_}
    return {name: dump(part) for name, part in parts.items()}


def measure(manifest: Manifest, seed: int, directory: Path, timeout_s: float = 1800.0) -> Single:
    """Run the single-process loop once.

    Raises:
        LinkError: it failed; with the last line it printed.
    """
    path = directory / f"single-{seed}.json"
    write_private(path, json.dumps(config(manifest, seed)))
    argv = [sys.executable, "-m", "user_system.cluster.bench.single_host", str(path)]
    environment = {**os.environ, **dict.fromkeys(THREADS, "1")}
    log = path.with_suffix(".log")
    with log.open("w") as errors:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    if done.returncode != 0:
        raise LinkError(f"the single-process loop failed; see {log}", got=done.returncode)
    report = json.loads(done.stdout.splitlines()[-1])
    return Single(env_steps=_number(report["env_steps"]), learn_s=_number(report["freeze_wall_s"]))


def _number(value: float | None) -> float:
    return math.inf if value is None else float(value)
