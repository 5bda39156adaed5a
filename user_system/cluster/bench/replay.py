"""``bench replay``: is a draw from the disk as fast as one from memory, and what does it cost."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from user_system.cluster.bench import replay_draws, replay_growth, replay_starts
from user_system.cluster.bench.figures import Figure
from user_system.cluster.bench.options import Options
from user_system.cluster.bench.replay_progress import Clock, Part, Shown, measure_parts
from user_system.cluster.bench.replay_stage import Stage
from user_system.cluster.bench.replay_work import FULL, QUICK

_Measure = Callable[[Stage, Clock, Shown], Sequence[Figure]]

_PARTS: tuple[tuple[str, tuple[str, ...], _Measure, float], ...] = (
    ("warm draws", replay_draws.ALONE_IDS, replay_draws.alone, 600.0),
    ("first batch of a cold start", replay_starts.COLD_IDS, replay_starts.cold, 300.0),
    ("full check", replay_starts.VERIFY_IDS, replay_starts.verifying, 300.0),
    ("long run of the writer", replay_growth.IDS, replay_growth.growing, 600.0),
    ("cold start with many records", replay_starts.OPEN_IDS, replay_starts.opening, 1500.0),
    ("checkpoints", replay_starts.CHECKPOINT_IDS, replay_starts.checkpoints, 1500.0),
    # Last: it adds to the store that the others read.
    ("draws beside a writer", replay_draws.WRITING_IDS, replay_draws.writing, 600.0),
)
IDS = tuple(name for _, ids, _, _ in _PARTS for name in ids)


def measure(options: Options) -> Iterator[Figure]:
    """Measure what is asked for, in a directory that is removed afterwards."""
    with Stage(options.directory, QUICK if options.quick else FULL) as stage:
        parts = [
            Part(name, ids, partial(part, stage), limit_s) for name, ids, part, limit_s in _PARTS
        ]
        yield from measure_parts(parts, options)
