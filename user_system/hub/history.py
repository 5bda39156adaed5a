"""Which versions of a policy are kept: all of the newest ones, and ever fewer of those before."""

from collections.abc import Collection


def kept(versions: Collection[int], newest: int, older: int) -> set[int]:
    """Return the versions to keep.

    Before the newest ones, one is kept of each stretch that is twice as long as the one after it:
    its oldest, which grows old enough for the next stretch. So a version from about as far back as
    anybody asks for is there, and a thousand versions need ten.

    Args:
        versions: those that are there.
        newest: how many of the newest are all kept.
        older: most that are kept of those before.
    """
    ordered = sorted(versions)
    first, last = ordered[:-newest], ordered[-newest:]
    stretches: dict[int, int] = {}
    for version in reversed(first):  # the oldest one of a stretch comes last and stays
        stretches[(last[-1] - version).bit_length()] = version
    spaced = sorted(stretches.values(), reverse=True)
    return set(last) | set(spaced[:older])
