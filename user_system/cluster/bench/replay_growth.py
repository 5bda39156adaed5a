"""What a long run costs: the writer's memory, and the disk."""

from collections.abc import Sequence

from user_system.cluster.bench.figures import Figure, Goal, judged
from user_system.cluster.bench.replay_cache import disk_bytes
from user_system.cluster.bench.replay_progress import Clock, Shown
from user_system.cluster.bench.replay_stage import WRITER, Stage, discard

IDS = ("replay.writer_rss_mb", "replay.disk_ratio")
MEMORY, DISK = Goal("<=", 300), Goal("<=", 1.05)


def growing(stage: Stage, clock: Clock, shown: Shown) -> Sequence[Figure]:
    """Append a long run of W; the store is removed at once."""
    sizes, path = stage.sizes, stage.directory / "long"
    stage.require(stage.image_disk(sizes.long_steps))
    shown.step(f"appending {sizes.long_steps} steps")
    try:
        with stage.child(WRITER, "writer") as writer:
            wanted = {"path": str(path), "sizes": stage.sizes_plain, "steps": sizes.long_steps}
            answer = writer.ask("fill", clock.left(), **wanted)
        size = disk_bytes(path)
    finally:
        discard(path)
    return figures(answer, size, sizes.images(sizes.long_steps) * sizes.image_bytes)


def figures(answer: dict[str, float], size: int, images: int) -> Sequence[Figure]:
    """Return what a long run came to.

    Args:
        answer: the writer's account.
        size: bytes on disk.
        images: bytes of its images, each once.
    """
    note = (
        f"most while {answer['steps']:.0f} steps were appended, making them included, "
        f"{answer['steps'] / answer['seconds']:.0f} steps/s"
    )
    return [
        judged(IDS[0], answer["private_mb"], MEMORY, "MB", note=note),
        judged(IDS[1], size / images, DISK, note=f"{size / 1e9:.2f} GB for {images / 1e9:.2f}"),
    ]
