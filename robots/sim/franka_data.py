"""What the maker publishes about the arm: numbers only, each with its source.

Sources:
  [FCI] Franka Control Interface documentation, "Robot and interface specifications", FR3:
        Denavit-Hartenberg parameters (Craig), joint limits, Cartesian limits.
  [DESC] franka_description (Apache-2.0), robots/fr3 and end_effectors/franka_hand: inertials of the
        links, joint velocity and effort limits, hand inertials.
  [HAND] Franka Hand product manual: stroke 80 mm, 50 mm/s per finger, 70 N continuous force.
"""

import math

JOINT_LOW = (-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159)
"""Lower joint limits (7,) rad [FCI]."""
JOINT_HIGH = (2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159)
"""Upper joint limits (7,) rad [FCI]."""
JOINT_VELOCITY = (2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26)
"""Joint velocity limits (7,) rad/s [DESC]."""
JOINT_ACCELERATION = (10.0,) * 7
"""Joint acceleration limits (7,) rad/s² [FCI]."""
JOINT_JERK = (5000.0,) * 7
"""Joint jerk limits (7,) rad/s³ [FCI]."""
JOINT_TORQUE = (87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0)
"""Joint torque limits (7,) N m [FCI]."""

DH: tuple[tuple[float, float, float], ...] = (
    (0.0, 0.333, 0.0),
    (0.0, 0.0, -math.pi / 2),
    (0.0, 0.316, math.pi / 2),
    (0.0825, 0.0, math.pi / 2),
    (-0.0825, 0.384, -math.pi / 2),
    (0.0, 0.0, math.pi / 2),
    (0.088, 0.0, math.pi / 2),
)
"""Per joint (a m, d m, alpha rad), Craig's convention: rotate alpha about the previous x, move a
along it, move d along the new z, then turn the joint about it [FCI]."""

FLANGE = 0.107
"""Link 7 to flange along z, m [FCI]."""
HAND_TURN = -math.pi / 4
"""Flange to hand about z, rad [FCI]."""
TCP = 0.1034
"""Hand to tool centre point along z, m [FCI]."""

LINKS: tuple[tuple[float, tuple[float, ...], tuple[float, ...]], ...] = (
    (
        2.9274653454,
        (0.0000004128, -0.0181251324, -0.0386035970),
        (0.0239273165, 0.0224821613, 0.0063500983, 0.0000133179, -0.0001140477, -0.0019950321),
    ),
    (
        2.9355370338,
        (0.0031828864, -0.0743221644, 0.0088146084),
        (0.0419389463, 0.0251451489, 0.0617021447, 0.0002025733, 0.0040777842, -0.0042252158),
    ),
    (
        2.2449013699,
        (0.0407015686, -0.0048200565, -0.0289730823),
        (0.0241014255, 0.0197405327, 0.0190444945, 0.0024046946, -0.0028562693, -0.0021042127),
    ),
    (
        2.6155955791,
        (-0.0459100965, 0.0630492960, -0.0085187868),
        (0.0345299832, 0.0288816219, 0.0412547117, 0.0132255226, 0.0101514300, -0.0009762834),
    ),
    (
        2.3271207594,
        (-0.0016039605, 0.0292536262, -0.0972965990),
        (0.0516102785, 0.0478772971, 0.0164236256, -0.0057151734, -0.0035673168, 0.0106739851),
    ),
    (
        1.8170376524,
        (0.0597131221, -0.0410294666, -0.0101692726),
        (0.0054123336, 0.0140583295, 0.0160808179, 0.0061934565, 0.0014219289, -0.0013140754),
    ),
    (
        0.6271432862,
        (0.0045225817, 0.0086261921, -0.0161633251),
        (0.0002109239, 0.0001771857, 0.0000599319, -0.0000243330, 0.0000456456, 0.0000874407),
    ),
)
"""Per link: mass kg, centre of mass (3,) m, inertia (xx, yy, zz, xy, xz, yz) kg m², in the link's
frame [DESC]."""

HAND_MASS = 0.73
"""kg [DESC]."""
HAND_COM = (-0.01, 0.0, 0.03)
"""Centre of mass in the hand's frame, m [DESC]."""
HAND_INERTIA = (0.001, 0.0025, 0.0017)
"""xx, yy, zz kg m² [DESC]."""
FINGER_MASS = 0.015
"""kg [DESC]."""
FINGER_LIFT = 0.0584
"""Hand frame to finger frame along z, m [DESC]."""
WIDTH_MAX = 0.08
"""Opening between the fingers, m [HAND]."""
WIDTH_VELOCITY = 0.1
"""Twice 50 mm/s per finger, m/s [HAND]."""
GRIP_FORCE_MAX = 70.0
"""Continuous grasping force, N [HAND]."""
