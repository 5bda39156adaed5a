"""Exact shares of views."""

from collections.abc import Mapping

from user_system.core.errors import SpecError


def counts(n: int, mix: Mapping[str, float]) -> dict[str, int]:
    """Split ``n`` rows over the views of a mix: exactly, largest remainder first.

    The shares need not add up to 1. Equal remainders go to the view named first.

    Raises:
        SpecError: no rows, no views, or a share that is not a finite number >= 0.
    """
    total = sum(mix.values())
    if n < 1 or not mix or not all(share >= 0 for share in mix.values()) or not 0 < total < 1e300:
        raise SpecError("mix", got=(n, dict(mix)), allowed="n >= 1 and shares >= 0, not all 0")
    if len(mix) == 1:
        return dict.fromkeys(mix, n)
    exact = {view: n * share / total for view, share in mix.items()}
    result = {view: int(value) for view, value in exact.items()}
    # Rounded, so that 0.1 + 0.2 does not outbid 0.3 by the last bit.
    by_remainder = sorted(exact, key=lambda view: -round(exact[view] - result[view], 9))
    for view in by_remainder[: n - sum(result.values())]:
        result[view] += 1
    return result
