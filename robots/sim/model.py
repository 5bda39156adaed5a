"""The arm, the table and the cube as MJCF: primitive geometry only, written from the data sheet.

Collisions are computed only where the task needs them: fingers, hand, cube and table. The links of
the arm are drawn but do not collide; the workspace box keeps them away from the table.

Frames: ``base`` is the foot of the arm, x forward, z up; the table top is the plane z = 0.
"""

from dataclasses import dataclass

from robots.sim import franka_data as fr3

TIMESTEP = 0.002
"""Physics step, s."""
JOINTS = tuple(f"joint{i}" for i in range(1, 8))
CAMERAS = ("front", "wrist")
STIFFNESS = (3000.0, 3000.0, 3000.0, 2500.0, 2500.0, 2000.0, 2000.0)
"""Joint impedance stiffness (7,) N m/rad: the control box's default."""
DAMPING = (130.0, 160.0, 130.0, 110.0, 40.0, 35.0, 30.0)
"""Joint impedance damping (7,) N m s/rad: about critical for the reflected inertias."""
ARMATURE = 0.1
"""Rotor inertia reflected through the gears, kg m²: an estimate, the maker publishes none."""
FRICTION_LOSS = 0.2
"""Dry joint friction left after the box's compensation, N m [DESC dynamics.yaml]."""

_SHAPES = (
    ("0 0 -0.19", "0 0 0", 0.06),
    ("0 0 -0.06", "0 0 0.06", 0.06),
    ("0 0 -0.14", "0 0 0", 0.06),
    ("0 0 -0.05", "0 0 0.06", 0.055),
    ("0 0 -0.26", "0 0.06 -0.05", 0.05),
    ("0 0 -0.03", "0.088 0 0", 0.05),
    ("0 0 0", "0 0 0.08", 0.045),
)
"""Per link: ends and radius of the capsule it is drawn as, m."""


@dataclass(frozen=True)
class Scene:
    """What stands on the table."""

    cube_half: float = 0.02
    """Half an edge of the cube, m."""
    cube_mass: float = 0.05
    """kg."""
    friction: float = 1.0
    """Sliding friction between rubber finger tips and cube."""
    grip_force: float = 35.0
    """Force of the closed gripper, N; the hand's continuous maximum is 70 N."""


def build_xml(scene: Scene) -> str:
    """Return the MJCF of arm, table and cube."""
    return f"""<mujoco model="fr3_pick">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{TIMESTEP}" integrator="implicitfast" cone="pyramidal" impratio="3"
          iterations="8" ls_iterations="12" tolerance="1e-8" jacobian="dense"/>
  <visual>
    <quality shadowsize="0" offsamples="0" numslices="12" numstacks="8"/>
    <global offwidth="640" offheight="480"/>
    <map znear="0.01" zfar="6"/>
    <headlight ambient=".4 .4 .4" diffuse=".6 .6 .6" specular="0 0 0"/>
  </visual>
  <asset>
    <texture type="skybox" builtin="gradient" rgb1=".8 .85 .9" rgb2=".6 .65 .7" width="32"
             height="192"/>
  </asset>
  <default>
    <geom contype="0" conaffinity="0" group="1"/>
    <default class="tip">
      <geom type="box" contype="1" conaffinity="2" condim="4" solref="0.006 1"
            friction="{scene.friction} 0.02 0.0001" rgba=".15 .15 .15 1" group="2"/>
    </default>
    <joint armature="{ARMATURE}" damping="1" frictionloss="{FRICTION_LOSS}"/>
  </default>
  <worldbody>
    <geom name="table" type="plane" size="1.5 1.5 0.1" contype="4" conaffinity="0"
          friction="0.8 0.01 0.0001" rgba=".75 .72 .68 1"/>
    <camera name="front" pos="1.35 0 0.8" xyaxes="0 1 0 -.514 0 .857" fovy="42"/>
    <geom name="link0" type="cylinder" size="0.07 0.07" pos="0 0 0.07" rgba=".95 .95 .95 1"/>
    {_arm(scene)}
    <body name="cube" pos="0.5 0 {scene.cube_half}">
      <freejoint name="cube"/>
      <geom name="cube" type="box" size="{scene.cube_half} {scene.cube_half} {scene.cube_half}"
            mass="{scene.cube_mass}" contype="2" conaffinity="5" condim="3" solref="0.006 1"
            friction="{scene.friction} 0.02 0.0001" rgba=".85 .2 .15 1" group="2"/>
    </body>
  </worldbody>
  <equality>
    <joint joint1="finger1" joint2="finger2" polycoef="0 1 0 0 0" solref="0.006 1"/>
  </equality>
  <actuator>
    {_actuators(scene)}
  </actuator>
  <sensor>
    <force name="wrist_force" site="wrist"/>
    <torque name="wrist_torque" site="wrist"/>
  </sensor>
</mujoco>"""


def _arm(scene: Scene) -> str:
    """Return the chain of links with the hand at its end, innermost last."""
    inner = _hand(scene)
    for i in reversed(range(7)):
        inner = _link(i, inner)
    return inner


def _link(i: int, inner: str) -> str:
    a, d, alpha = fr3.DH[i]
    # Craig: turn by alpha about the old x, then d along the new z; in the old frame that is
    # (a, -d sin(alpha), d cos(alpha)). Every alpha here is 0 or a right angle.
    turn = 0 if alpha == 0 else (1 if alpha > 0 else -1)
    pos = (a, -d * turn, d if turn == 0 else 0.0)
    mass, com, inertia = fr3.LINKS[i]
    start, end, radius = _SHAPES[i]
    shade = ".95 .95 .95 1" if i % 2 == 0 else ".85 .87 .9 1"
    return f"""<body name="link{i + 1}" pos="{_text(pos)}" euler="{alpha} 0 0" gravcomp="1">
      <inertial mass="{mass}" pos="{_text(com)}" fullinertia="{_text(inertia)}"/>
      <joint name="{JOINTS[i]}" axis="0 0 1" range="{fr3.JOINT_LOW[i]} {fr3.JOINT_HIGH[i]}"
             actuatorfrcrange="-{fr3.JOINT_TORQUE[i]} {fr3.JOINT_TORQUE[i]}"/>
      <geom type="capsule" fromto="{start} {end}" size="{radius}" rgba="{shade}"/>
      {inner}
    </body>"""


def _hand(scene: Scene) -> str:
    return f"""<body name="hand" pos="0 0 {fr3.FLANGE}" euler="0 0 {fr3.HAND_TURN}" gravcomp="1">
      <inertial mass="{fr3.HAND_MASS}" pos="{_text(fr3.HAND_COM)}"
                diaginertia="{_text(fr3.HAND_INERTIA)}"/>
      <geom name="hand" type="box" size="0.03 0.1 0.03" pos="0 0 0.033" contype="1"
            conaffinity="2" rgba=".9 .9 .9 1"/>
      <camera name="wrist" pos="0.09 0 0.06" xyaxes="0 1 0 .61 0 .79" fovy="75"/>
      <site name="wrist" size="0.004" group="4"/>
      <site name="tcp" pos="0 0 {fr3.TCP}" size="0.004" group="4"/>
      {_finger("finger1", 1)}
      {_finger("finger2", -1)}
    </body>"""


def _finger(name: str, side: int) -> str:
    stroke = fr3.WIDTH_MAX / 2
    return f"""<body name="{name}" pos="0 0 {fr3.FINGER_LIFT}" gravcomp="1">
        <inertial mass="{fr3.FINGER_MASS}" pos="0 {side * 0.008} 0.025"
                  diaginertia="2.4e-6 2.4e-6 7.5e-7"/>
        <joint name="{name}" type="slide" axis="0 {side} 0" range="0 {stroke}" armature="0.2"
               damping="10" frictionloss="0" solreflimit="0.006 1"/>
        <geom type="box" size="0.01 0.006 0.016" pos="0 {side * 0.011} 0.013" rgba=".3 .3 .3 1"/>
        <geom name="{name}" class="tip" size="0.009 0.005 0.010" pos="0 {side * 0.005} 0.043"/>
      </body>"""


def _actuators(scene: Scene) -> str:
    """Return the servos; they run inside the physics step.

    Joint impedance: per joint an integrating servo follows a reference that moves at the commanded
    speed, and a damper acts on the difference of speeds.
    """
    lines = []
    for joint, k, d in zip(JOINTS, STIFFNESS, DAMPING, strict=True):
        lines.append(
            f'<general name="{joint}" joint="{joint}" dyntype="integrator" gainprm="{k}" '
            f'biastype="affine" biasprm="0 -{k} 0" actlimited="false"/>'
        )
        lines.append(f'<velocity name="{joint}_damper" joint="{joint}" kv="{d}"/>')
    lines.append(
        f'<general name="grip" joint="finger1" gainprm="3500" biastype="affine" '
        f'biasprm="0 -3500 -75" ctrlrange="0 {fr3.WIDTH_MAX / 2}" '
        f'forcerange="-{2 * scene.grip_force} {2 * scene.grip_force}"/>'
    )
    return "\n    ".join(lines)


def _text(values: tuple[float, ...]) -> str:
    return " ".join(repr(v) for v in values)
