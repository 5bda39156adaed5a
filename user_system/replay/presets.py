"""Published ways to learn from what robots and people did, as data over one raw log.

Each is a mix of views and, for one, weights; nothing is recorded, copied or deleted for it, so that
all of them can be drawn from the same store, at the same time.

=========== ===================================================================================
rlpd        half of each batch what the robots did online, half demonstrations
hil_serl    the same, where interventions belong to both halves
hg_dagger   only what a person did
rac         what people did, and the robot's own steps of episodes that succeeded without help
armada      everything but failed episodes and what was undone
sirius      everything but the 15 steps before an intervention, which led to it; half of the
            mass to interventions, to demonstrations as many as they are, to the robot's own
            steps what is left
=========== ===================================================================================
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from user_system.core.draws import Draw, Weigh
from user_system.core.errors import SpecError


@dataclass(frozen=True, slots=True)
class Preset:
    """What a preset says of a draw."""

    mix: Mapping[str, float]
    weigh: Weigh | None = None
    cross_views: bool = True
    """Imitation is of steps that were chosen for it, so its windows do not leave the view."""


PRESETS: Mapping[str, Preset] = {
    "rlpd": Preset({"online": 0.5, "demos": 0.5}),
    "hil_serl": Preset({"online": 0.5, "prior": 0.5}),
    "hg_dagger": Preset({"human": 1.0}, cross_views=False),
    "rac": Preset({"rac": 1.0}, cross_views=False),
    "armada": Preset({"armada": 1.0}, cross_views=False),
    "sirius": Preset(
        {"sirius": 1.0},
        Weigh("segment", shares={"RECOVERY|CORRECTION": 0.5}, rest="AUTO"),
        cross_views=False,
    ),
}

_PLAIN = Draw(1)


def resolve(request: Draw) -> Draw:
    """Return a request that names a preset as one that says what the preset means.

    Raises:
        SpecError: there is no such preset, or the request says otherwise itself.
    """
    if not request.preset:
        return request
    if request.preset not in PRESETS:
        near = difflib.get_close_matches(request.preset, PRESETS, 1)
        todo = f"Did you mean {near[0]!r}?" if near else ""
        raise SpecError("unknown preset", got=request.preset, allowed=", ".join(PRESETS), todo=todo)
    for name in ("mix", "weigh", "cross_views"):
        if getattr(request, name) != getattr(_PLAIN, name):
            raise SpecError(
                f"a draw with preset {request.preset!r} has its own {name}",
                got=getattr(request, name),
                allowed="one of both",
            )
    preset = PRESETS[request.preset]
    return replace(
        request,
        preset="",
        mix=preset.mix,
        weigh=preset.weigh,
        cross_views=preset.cross_views,
    )
