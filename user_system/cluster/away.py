"""Actors whose policies run at the head: what each is told, which GPUs are whose, the way there."""

import math
from collections.abc import Mapping
from typing import Literal

from user_system.cluster.configs import AwayConfig, LinkConfig, PolicyHostConfig, PolicyRobot
from user_system.cluster.configs import PluginConfig as Plugin
from user_system.cluster.edges import POLICY
from user_system.cluster.layout import RunDir
from user_system.cluster.manifest import ActorEntry, Manifest
from user_system.cluster.parse import dump

PEER = POLICY
"""How the peer names of policies at the head begin; the actor's follows."""


def gpus(manifest: Manifest, count: int) -> dict[str, list[int]]:
    """Return which of ``count`` GPUs each has to itself: the last; learners have the others."""
    free, own = list(range(count)), {}
    for name, entry in manifest.away.items():
        own[name] = [free.pop() for _ in range(min(entry.gpus, len(free)))]
    return own


def environment(manifest: Manifest, actor: str, count: int) -> Mapping[str, str]:
    """Return what an actor's process may use, where there are ``count`` GPUs."""
    threads = str(math.ceil(manifest.actors[actor].cpus))
    return {
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus(manifest, count)[actor])),
    }


def config(manifest: Manifest, actor: str, link: LinkConfig, run: RunDir) -> PolicyHostConfig:
    """Return what an actor's process is told."""
    entry = manifest.actors[actor]
    learner = manifest.learners[entry.learner]
    robots = [(name, r) for name, r in manifest.robots.items() if r.actor == actor]
    return PolicyHostConfig(
        link=link,
        actor=actor,
        policy=entry.learner,
        learner=Plugin(learner.kind, dump(learner.config)),
        robots=tuple(
            PolicyRobot(name, r.host, Plugin(r.kind, dump(r.config))) for name, r in robots
        ),
        directory=run.policy(actor),
        hang_s=entry.hang_s,
        listen=manifest.tunnel.listen,
        shelf=run.weights,
    )


def way(actor: str, entry: ActorEntry, link: LinkConfig) -> AwayConfig | None:
    """Return how a robot host's worker reaches an actor's policy; None: it runs there."""
    if entry.where == "edge":
        return None
    images: Literal["zstd", "jpeg"] = "jpeg" if entry.images == "jpeg" else "zstd"
    return AwayConfig(link, actor, images)
