"""user-system: real robots learn online.

Everything a plugin author needs is here; importing it costs NumPy and nothing else.
"""

from user_system.core.draws import AsOf, Draw, Hindsight, Weigh
from user_system.core.errors import UserSystemError
from user_system.core.interfaces import (
    Data,
    Encoder,
    Judgement,
    Learner,
    LearnerPlugin,
    NotReady,
    Policy,
    Priorities,
    Report,
    ResetPlan,
    Robot,
    Task,
)
from user_system.core.registry import Registry
from user_system.core.specs import ActionSpec, Field, Limits, PolicySpec, RobotSpec
from user_system.core.types import (
    Batch,
    End,
    Fragment,
    Plan,
    Purpose,
    Reading,
    Segment,
    TimeStep,
    Weights,
)

__all__ = [
    "ActionSpec",
    "AsOf",
    "Batch",
    "Data",
    "Draw",
    "Encoder",
    "End",
    "Field",
    "Fragment",
    "Hindsight",
    "Judgement",
    "Learner",
    "LearnerPlugin",
    "Limits",
    "NotReady",
    "Plan",
    "Policy",
    "PolicySpec",
    "Priorities",
    "Purpose",
    "Reading",
    "Registry",
    "Report",
    "ResetPlan",
    "Robot",
    "RobotSpec",
    "Segment",
    "Task",
    "TimeStep",
    "UserSystemError",
    "Weigh",
    "Weights",
]

__version__ = "0.1.0"
