"""Small episodes for tests of commands."""

import numpy as np

from user_system.core.types import End, Fragment, FragmentHeader, Purpose, Segment


def fragment(producer: str, sequence: int) -> Fragment:
    """Return an episode of three steps at 10 Hz in one fragment, with images."""
    t, rng = 3, np.random.default_rng(sequence)
    header = FragmentHeader(
        *(producer, 1, sequence, "run", "pick", f"{producer}-{sequence}", 0, Purpose.TRAIN),
        *("s", producer, "e", "b", sequence, 1),
    )
    return Fragment(
        header=header,
        observation={
            "q": rng.random((t + 1, 2)).astype(np.float32),
            "cam": rng.integers(0, 256, (t + 1, 48, 48, 3), np.uint8),
        },
        executed=rng.random((t, 2)).astype(np.float32),
        proposed=np.full((t, 2), np.nan, np.float32),
        reward=np.zeros(t, np.float32),
        segment=np.full(t, Segment.AUTO, np.uint8),
        end=np.array([0, 0, End.TERMINATED], np.uint8),
        robot_ns=np.arange(t + 1, dtype=np.int64) * 100_000_000,
        policy=np.zeros(t, np.uint16),
        version=np.zeros(t, np.int64),
        operator=np.zeros(t, np.uint16),
        chunk=np.zeros(t, np.int32),
        position=np.arange(t, dtype=np.int32),
    )
