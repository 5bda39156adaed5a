"""A scripted person: demonstrates and helps through the page's own service, like anybody else."""

from importlib import import_module
from typing import Any

from user_system.cluster.configs import OperatorHostConfig
from user_system.cluster.process import Life, run
from user_system.core.errors import ConfigError
from user_system.core.types import Observation
from user_system.teleop.scripted import ScriptedConfig, ScriptedOperator

EXPERTS = {"sim.pick_cube": "robots.sim.expert:pick_cube"}
"""Task -> a rule that knows how it is done; only simulated tasks have one."""

HELD_N = 5.0
"""Force of a finger at which a person sees that the hand holds something."""


def main(config: OperatorHostConfig, life: Life) -> None:
    """Look after robots until told to stop."""
    operator = ScriptedOperator(
        ScriptedConfig(
            url=config.url,
            operator=config.name,
            robots=config.robots,
            help=config.help,
            release_after_s=config.release_after_s,
            authority=config.authority,
        ),
        secret=config.secret,
        expert=_expert(config.task),
        on_its_way=_holds,
    )
    life.ready()
    operator.run(life.stop)


def _holds(observation: Observation) -> bool:
    return float(observation["gripper_force"][0]) > HELD_N


def _expert(task: str) -> Any:
    if task not in EXPERTS:
        raise ConfigError(
            f"nobody wrote down how task {task!r} is done",
            allowed=", ".join(EXPERTS),
            todo="Remove the scripted operator from the manifest.",
        )
    module, _, name = EXPERTS[task].partition(":")
    return getattr(import_module(module), name)


if __name__ == "__main__":
    run(main, OperatorHostConfig)
