"""How a simulated Franka is configured, and the specification that follows from it."""

from dataclasses import dataclass
from typing import Literal

from robots.sim import franka_data as fr3
from user_system.core.errors import ConfigError
from user_system.core.specs import ActionSpec, Field, Limits, RobotSpec, StreamSpec

Control = Literal["cartesian", "joint"]
CAMERAS = ("front", "wrist")

WRIST_HZ = (0.0, 50.0, 100.0, 250.0, 500.0)
"""Rates of the sensor at the wrist: whole shares of the physics' 500 steps per second."""

HOME = (0.5, 0.0, 0.2, 0.0, 0.0, 0.0, fr3.WIDTH_MAX)
"""Resting set-point: tool down over the middle of the table, hand open."""
HOME_JOINTS = (0.0, 0.0459, 0.0, -2.3763, 0.0, 2.4222, 0.7854, fr3.WIDTH_MAX)
"""The same pose in joint coordinates."""

CARTESIAN = Limits(
    names=("x", "y", "z", "rx", "ry", "rz", "width"),
    units=("m", "m", "m", "rad", "rad", "rad", "m"),
    low=(0.35, -0.25, 0.015, -0.2, -0.2, -0.8, 0.0),
    high=(0.65, 0.25, 0.35, 0.2, 0.2, 0.8, fr3.WIDTH_MAX),
    velocity=(0.5, 0.5, 0.5, 1.2, 1.2, 1.2, fr3.WIDTH_VELOCITY),
    acceleration=(7.0, 7.0, 7.0, 6.0, 6.0, 6.0, 2.0),
    jerk=(700.0, 700.0, 700.0, 150.0, 150.0, 150.0, 80.0),
)
"""Well inside the arm's own limits (3 m/s, 9 m/s², 4500 m/s³): a bench shared with people."""

JOINT = Limits(
    names=("q1", "q2", "q3", "q4", "q5", "q6", "q7", "width"),
    units=("rad",) * 7 + ("m",),
    low=(*(low + 0.05 for low in fr3.JOINT_LOW), 0.0),
    high=(*(high - 0.05 for high in fr3.JOINT_HIGH), fr3.WIDTH_MAX),
    velocity=(*(0.5 * v for v in fr3.JOINT_VELOCITY), fr3.WIDTH_VELOCITY),
    acceleration=(*(0.8 * a for a in fr3.JOINT_ACCELERATION), 2.0),
    jerk=(200.0,) * 7 + (80.0,),
)
"""Half the arm's speed."""


@dataclass(frozen=True)
class SimFrankaConfig:
    """A simulated FR3 with a parallel hand over a table with a cube.

    Raises:
        ConfigError: a value is out of range; the message says which and what is allowed.
    """

    socket: str = ""
    """Unix socket of the world process; empty where the physics run in this process."""
    space: Control = "cartesian"
    """Whether set-points are tool poses or joint positions."""
    action: tuple[str, ...] = ("x", "y", "z", "width")
    """Set-point coordinates that a policy chooses; ``width`` is absolute, all others are moved."""
    step_m: float = 0.04
    """Largest motion per control period of a length, m."""
    turn_rad: float = 0.15
    """Largest motion per control period of an angle, rad."""
    control_hz: float = 10.0
    tick_hz: float = 50.0
    hold_after_ms: float = 200.0
    stop_after_ms: float = 2000.0
    cameras: tuple[str, ...] = ()
    """Cameras that belong to the observation: ``front``, ``wrist``."""
    image_size: tuple[int, int] = (128, 128)
    """Height and width of an image, pixels."""
    wrist_hz: float = 0.0
    """Samples per robot second of the force-torque sensor at the wrist; 0: there is none."""
    connect_s: float = 10.0
    """How long to wait for the world process, wall s."""

    def __post_init__(self) -> None:
        names = self.limits.names
        if not self.action or not set(self.action) <= set(names):
            raise ConfigError("sim.franka: unknown action", got=self.action, allowed=names)
        if len(set(self.action)) != len(self.action):
            raise ConfigError("sim.franka: an action is named twice", got=self.action)
        if not set(self.cameras) <= set(CAMERAS):
            raise ConfigError("sim.franka: unknown camera", got=self.cameras, allowed=CAMERAS)
        ticks = self.tick_hz / self.control_hz
        if ticks < 1 or ticks != round(ticks):
            raise ConfigError(
                "sim.franka: tick_hz must be a whole multiple of control_hz",
                got=f"{self.tick_hz} and {self.control_hz}",
                allowed=f"{self.control_hz:g}, {2 * self.control_hz:g}, {3 * self.control_hz:g} …",
            )
        if not 0 < self.step_m <= 0.1 or not 0 < self.turn_rad <= 0.5:
            raise ConfigError(
                "sim.franka: step too large",
                got=(self.step_m, self.turn_rad),
                allowed="step_m in (0, 0.1], turn_rad in (0, 0.5]",
            )
        if self.wrist_hz not in WRIST_HZ:
            raise ConfigError("sim.franka: wrist_hz", got=self.wrist_hz, allowed=WRIST_HZ)
        if not all(16 <= n <= 480 for n in self.image_size):
            raise ConfigError("sim.franka: image_size", got=self.image_size, allowed="16 … 480")

    @property
    def limits(self) -> Limits:
        """Box and motion limits of the set-point coordinates."""
        return CARTESIAN if self.space == "cartesian" else JOINT


def spec_of(config: SimFrankaConfig) -> RobotSpec:
    """Return what a robot of this configuration observes, obeys and is limited to."""
    return RobotSpec(
        kind="sim.franka",
        observation=_observation(config),
        action=_action(config),
        limits=config.limits,
        cameras={
            name: Field((*config.image_size, 3), "uint8", frame=name, doc=f"{name} camera, RGB")
            for name in config.cameras
        },
        control_hz=config.control_hz,
        tick_hz=config.tick_hz,
        hold_after_ms=config.hold_after_ms,
        stop_after_ms=config.stop_after_ms,
        home=HOME if config.space == "cartesian" else HOME_JOINTS,
        resettable=True,
        streams=_streams(config),
    )


def _observation(config: SimFrankaConfig) -> dict[str, Field]:
    fields = {
        "tcp_position": Field((3,), unit="m", frame="base", doc="tool centre point"),
        "tcp_velocity": Field((3,), unit="m/s", frame="base", doc="tool centre point"),
        "gripper_width": Field((1,), unit="m", doc="opening between the fingers"),
        "gripper_force": Field((1,), unit="N", doc="force of one finger on the cube"),
        "cube_position": Field((3,), unit="m", frame="base", doc="centre of the cube"),
        "cube_offset": Field((3,), unit="m", frame="base", doc="cube minus tool centre point"),
    }
    if config.space == "joint":
        fields["joint_position"] = Field((7,), unit="rad", doc="q1 … q7")
        fields["joint_velocity"] = Field((7,), unit="rad/s", doc="q1 … q7")
    return fields


def _streams(config: SimFrankaConfig) -> dict[str, StreamSpec]:
    if not config.wrist_hz:
        return {}
    force = Field((3,), unit="N", frame="hand", doc="of the flange on the hand")
    torque = Field((3,), unit="N m", frame="hand", doc="the same, about the flange")
    return {
        "wrist_force": StreamSpec(force, config.wrist_hz),
        "wrist_torque": StreamSpec(torque, config.wrist_hz),
    }


def _action(config: SimFrankaConfig) -> ActionSpec:
    limits = config.limits
    where = [limits.names.index(name) for name in config.action]
    step = {"m": config.step_m, "rad": config.turn_rad}
    delta = [name != "width" for name in config.action]
    return ActionSpec(
        names=tuple(f"d{n}" if d else n for n, d in zip(config.action, delta, strict=True)),
        units=tuple(limits.units[c] for c in where),
        low=tuple(
            -step[limits.units[c]] if d else limits.low[c]
            for c, d in zip(where, delta, strict=True)
        ),
        high=tuple(
            step[limits.units[c]] if d else limits.high[c]
            for c, d in zip(where, delta, strict=True)
        ),
        delta=tuple(delta),
        coordinate=tuple(where),
    )
