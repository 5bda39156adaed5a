"""What is asked of the replay buffer, checked before anything is done for it."""

from user_system.core.draws import Draw, Hindsight
from user_system.core.errors import SpecError
from user_system.replay import presets, weigh

UNITS = ("step", "nstep", "window", "episode")

_MOST = 1 << 20
"""Of anything that is counted: a mistake, not a wish."""


def checked(request: Draw) -> Draw:
    """Return a request that makes sense, with its preset resolved.

    Raises:
        SpecError: it does not; says what would.
    """
    if request.unit not in UNITS:
        raise SpecError("draw", got=request.unit, allowed=", ".join(UNITS))
    if not (1 <= request.length <= _MOST and 0.0 <= request.gamma <= 1.0):
        got = (request.length, request.gamma)
        raise SpecError("draw", got=got, allowed="length >= 1 and gamma in [0, 1]")
    if not 0 <= request.history <= _MOST:
        raise SpecError("draw, history", got=request.history, allowed="0 or more observations")
    for name, wanted in request.streams.items():
        if not (1 <= wanted.samples <= _MOST and wanted.max_age_s >= 0):
            got = (wanted.samples, wanted.max_age_s)
            raise SpecError(f"draw, stream {name!r}", got=got, allowed="samples >= 1, age >= 0")
    request = presets.resolve(request)
    if request.weigh is not None:
        weigh.check(request.weigh)
    if request.hindsight is not None:
        _check_hindsight(request.hindsight)
    if request.unit == "episode":
        _check_whole(request)
    return request


def _check_hindsight(wanted: Hindsight) -> None:
    if wanted.strategy not in ("future", "final"):
        raise SpecError("hindsight", got=wanted.strategy, allowed="future, final")
    if not (0.0 <= wanted.share <= 1.0 and 0.0 <= wanted.tolerance < float("inf")):
        got = (wanted.share, wanted.tolerance)
        raise SpecError("hindsight", got=got, allowed="share in [0, 1], tolerance >= 0")
    if not all(abs(reward) < float("inf") for reward in (wanted.reached, wanted.missed)):
        got = (wanted.reached, wanted.missed)
        raise SpecError("hindsight", got=got, allowed="finite rewards")


def _check_whole(request: Draw) -> None:
    """Refuse what has no meaning for whole episodes."""
    for name in ("weigh", "hindsight"):
        if getattr(request, name) is not None:
            raise SpecError(
                f"whole episodes with {name}", got=request.unit, allowed="step, nstep, window"
            )
    if request.history:
        raise SpecError(
            "whole episodes with a history", got=request.history, allowed="0: all of it is there"
        )
