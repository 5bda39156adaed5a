"""The replay's benchmark: what it stores, what it divides by what, and that it can say no."""

import dataclasses
import mmap
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from user_system.cluster import bench
from user_system.cluster.bench import (
    replay,
    replay_backends,
    replay_cache,
    replay_draws,
    replay_growth,
    replay_progress,
    replay_starts,
    replay_work,
)
from user_system.cluster.bench.figures import Figure, Goal
from user_system.cluster.bench.replay_backends import Plain, Ring, Stored
from user_system.cluster.bench.replay_child import Child
from user_system.cluster.bench.replay_progress import Clock, Part
from user_system.cluster.bench.replay_rounds import Rounds, ratio_figure
from user_system.cluster.bench.replay_stage import WRITER, Stage
from user_system.cluster.bench.replay_work import Recorder, Sizes
from user_system.codec import fragments
from user_system.core.errors import ConfigError, DamageError, LinkError, MissingError
from user_system.core.interfaces import Draw
from user_system.core.types import Batch
from user_system.replay import store
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store

TINY = Sizes(steps=200, side=16, batch=16, records=400)
GENEROUS_S = 100.0
"""Bounds hangs only."""


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """A tiny store of W."""
    path = tmp_path_factory.mktemp("bench") / "replay"
    with Store(path).open(create=True) as made:
        assert not made.append(list(Recorder(TINY).fragments(TINY.steps)))
    return path


# --- the workload --------------------------------------------------------------------------------


def test_workload_w():
    assert (replay_work.FULL.steps, replay_work.FULL.episode, replay_work.FULL.fragment) == (
        *(10_000, 100, 10),
    )
    fragment = next(Recorder(replay_work.FULL).fragments())
    assert {n: (a.dtype.name, a.shape) for n, a in fragment.observation.items()} == {
        "front": ("uint8", (10, 128, 128, 3)),
        "wrist": ("uint8", (10, 128, 128, 3)),
        "state": ("float32", (10, 32)),
    }
    assert fragment.executed.shape == (10, 7)
    assert replay_work.FULL.images(10_000) == 20_200


def test_fragments_are_sound_and_make_whole_episodes():
    made = list(Recorder(TINY).fragments(TINY.steps))
    for fragment in made:
        fragments.check(fragment)
    assert [len(f) for f in made] == [10] * 20
    assert [f.header.start for f in made] == [*range(0, 100, 10)] * 2
    assert [i for i, f in enumerate(made) if f.final] == [9, 19]
    numbers = [int(n) for f in made for n in f.observation["state"][:, 0]]
    assert numbers == [*range(202)]
    pixels = np.concatenate([f.observation["front"] for f in made])
    assert sum(len(f.observation["front"]) for f in made) * 2 == TINY.images(TINY.steps)
    assert len(np.unique(pixels.reshape(len(pixels), -1), axis=0)) == len(pixels)


def test_records_are_single_steps_of_robots_in_turn():
    made = list(replay_work.records(TINY))
    for fragment in made[:200]:
        fragments.check(fragment)
    assert len(made) == TINY.records
    assert {len(f) for f in made} == {1}
    assert [f.header.producer for f in made[:5]] == ["arm-0", "arm-1", "arm-2", "arm-3", "arm-0"]
    assert sum(f.final for f in made) == TINY.robots
    assert not set(made[0].observation) & set(replay_work.CAMERAS)


def test_a_batch_of_somebody_elses_images_is_noticed(stored):
    with store.reader(stored).open() as env:
        batch = ReplayData(env, seed=1).draw(Draw(n=16))
    replay_work.check(batch)

    def wrong(side: str, name: str) -> Batch:
        values = dict(getattr(batch, side))
        values[name] = np.roll(values[name], 1, axis=0)
        return dataclasses.replace(batch, **{side: values})

    for side in ("observation", "next_observation"):
        for name in ("front", "wrist", "state"):
            with pytest.raises(DamageError, match="another one"):
                replay_work.check(wrong(side, name))
    stuck = dataclasses.replace(batch, next_observation=batch.observation)
    with pytest.raises(DamageError, match="observation of another one"):
        replay_work.check(stuck)
    turned = batch.observation["front"].transpose(0, 2, 1, 3)
    seen = dataclasses.replace(batch, observation={**batch.observation, "front": turned})
    with pytest.raises(DamageError, match="contiguous"):
        replay_work.check(seen)


# --- backends and rounds -------------------------------------------------------------------------


def test_the_references_deliver_what_follows_what(tmp_path):
    for backend in (Ring(TINY), Plain(TINY, tmp_path / "plain")):
        backend.warm()
        seen, after, low = backend.batch()
        for name, shape in (("front", (16, 16, 3)), ("wrist", (16, 16, 3)), ("state", (32,))):
            assert seen[name].shape == after[name].shape == (TINY.batch, *shape)
        assert low["action"].shape == (TINY.batch, 7)
        replay_work.check(
            Batch(
                observation=seen,
                next_observation=after,
                **dict.fromkeys(("reward", "discount", "end", "valid", "ids"), low["reward"]),
                action=low["action"],
            )
        )
        backend.close()


class Slow:
    """A buffer that takes its time."""

    def __init__(self, data: ReplayData, seconds: float):
        self.data, self.seconds = data, seconds

    def draw(self, request: Draw) -> Batch:
        time.sleep(self.seconds)
        return self.data.draw(request)


class Prepared:
    """A buffer that has its batch already: faster than any."""

    def __init__(self, data: ReplayData):
        self.batch = data.draw(Draw(n=TINY.batch))

    def draw(self, request: Draw) -> Batch:
        return self.batch


@pytest.mark.parametrize(("kind", "ok"), [("slow", False), ("prepared", True)])
def test_a_slow_store_misses_the_goal_and_a_fast_one_does_not(stored, kind, ok):
    ring = Ring(TINY)
    with store.reader(stored).open() as env:
        data = ReplayData(env, seed=1)
        backend = Stored.__new__(Stored)
        backend.data = Slow(data, 0.02) if kind == "slow" else Prepared(data)
        backend._request = Draw(n=TINY.batch)
        meters = {
            name: lambda made=made: replay_backends.rate(made, TINY.batch, 0.1)
            for name, made in (("store", backend), ("ring", ring))
        }
        rounds = Rounds().run(meters, 3)
    figure = ratio_figure("replay.sample_ratio", rounds, replay_draws.SAMPLE)
    assert figure.ok is ok, figure


def reading(rate: float, cpus: float = 1.0, private_mb: float = 100.0) -> dict[str, float]:
    return {"rate": rate, "cpus": cpus, "longest_s": 0.01, "private_mb": private_mb}


def test_rounds_turn_round_and_divide_within_themselves():
    order: list[str] = []
    rates = {"store": iter([90.0, 10.0, 50.0]), "ring": iter([100.0, 10.0, 100.0])}

    def meter(name: str) -> dict[str, float]:
        order.append(name)
        return reading(next(rates[name]))

    rounds = Rounds().run({n: lambda n=n: meter(n) for n in rates}, 3)
    assert order == ["store", "ring", "ring", "store", "store", "ring"]
    assert rounds.ratios("store") == [0.9, 1.0, 0.5]
    figure = ratio_figure("r", rounds, Goal(">=", 0.9))
    # The median of the ratios, not the ratio of the medians, which is 0.5.
    assert (figure.value, figure.ok) == (0.9, True)


def rounds_of(**backends: list[dict[str, float]]) -> Rounds:
    return Rounds(backends)


def test_two_threads_are_no_figure():
    rounds = rounds_of(store=[reading(95, 1.0), reading(200, 1.9)], ring=[reading(100)] * 2)
    figure = ratio_figure("r", rounds, Goal(">=", 0.9))
    assert (figure.value, figure.ok) == (None, False)
    assert "1.90 processors" in figure.note


def test_memory_is_the_most_of_all_rounds():
    rounds = rounds_of(
        store=[reading(95, private_mb=499), reading(95, private_mb=501)], ring=[reading(100)] * 2
    )
    ratio, memory = replay_draws.alone_figures(rounds)
    assert (ratio.value, ratio.ok) == (0.95, True)
    assert (memory.value, memory.ok) == (501, False)
    assert memory.reference == "ring 100"


def test_a_writer_that_falls_behind_is_no_writer():
    rounds = rounds_of(store=[reading(85)], ring=[reading(100)])
    assert replay_draws.writing_figure(rounds, 199.0, 200.0).ok
    with pytest.raises(LinkError, match="fell behind"):
        replay_draws.writing_figure(rounds, 150.0, 200.0)


# --- the other figures ---------------------------------------------------------------------------


def start(total: float) -> dict[str, float]:
    return {"open_s": total / 4, "batch_s": total * 3 / 4, "total_s": total}


def test_cold_starts():
    rounds = rounds_of(store=[start(0.1), start(0.3), start(0.2)], plain=[start(1.0)] * 3)
    figure = replay_starts.cold_figure(rounds, 0.0)
    assert (figure.value, figure.ok) == (0.2, True)
    assert "plain LMDB loop 1.00" in figure.reference
    assert "batch 0.150" in figure.note
    assert "page cache dropped" in figure.note
    slow = rounds_of(store=[start(0.21)], plain=[start(1.0)])
    late = replay_starts.cold_figure(slow, 0.125)
    assert late.ok is False
    assert "12.5% of the files stayed in the page cache" in late.note


def test_opening_with_many_records():
    times = [{"seconds": s, "count": 1000.0, "private_mb": 300.0} for s in (2.0, 3.1, 4.0)]
    assert replay_starts.open_figure(times, 1000, 0.0, 10**9).ok is False
    assert replay_starts.open_figure(times[:2], 1000, 0.0, 10**9).value == pytest.approx(2.55)
    with pytest.raises(DamageError, match="another number"):
        replay_starts.open_figure(times, 1001, 0.0, 10**9)


def test_a_full_check_is_as_fast_as_the_slower_of_warm_and_cold():
    found = {"warm": [2000.0, 1900.0, 100.0], "cold": [250.0, 150.0, 190.0], "reading": [500.0]}
    figure = replay_starts.verify_figure(found, 0.0)
    assert (figure.value, figure.ok) == (190.0, False)
    assert "500" in figure.reference
    assert replay_starts.verify_figure({**found, "cold": [2500.0]}, 0.0).value == 1900.0


def test_a_checkpoint_stalls_as_long_as_the_longest_one():
    found = {"images": [0.1, 0.2], "records": [0.9, 1.1]}
    figure = replay_starts.checkpoint_figure(found, 20_000_000)
    assert (figure.value, figure.ok) == (1.1, False)


def test_what_a_long_run_costs():
    answer = {"steps": 100.0, "seconds": 2.0, "private_mb": 301.0}
    memory, disk = replay_growth.figures(answer, size=104, images=100)
    assert (memory.value, memory.ok) == (301.0, False)
    assert (disk.value, disk.ok) == (1.04, True)
    assert "50 steps/s" in memory.note
    assert not replay_growth.figures(answer, size=106, images=100)[1].ok


# --- the page cache ------------------------------------------------------------------------------


def test_files_leave_the_page_cache_unless_somebody_has_them_mapped(tmp_path):
    pages = 64
    file = tmp_path / "inside" / "data"
    file.parent.mkdir()
    file.write_bytes(os.urandom(pages * mmap.PAGESIZE))
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if replay_cache.resident(tmp_path) == 1.0:
        pytest.skip("this file system is nothing but page cache")
    file.read_bytes()
    assert replay_cache.resident(tmp_path) == 1.0
    assert replay_cache.drop(tmp_path) == replay_cache.resident(tmp_path) == 0.0
    file.read_bytes()
    assert replay_cache.resident(tmp_path) == 1.0
    with file.open("rb") as handle:
        with mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[0] == mapped[0]
            assert replay_cache.drop(tmp_path) > 0.0
        assert replay_cache.drop(tmp_path) == 0.0
    assert replay_cache.disk_bytes(tmp_path) >= pages * mmap.PAGESIZE


# --- parts and processes -------------------------------------------------------------------------


def test_a_part_that_fails_misses_its_figures_and_stops_no_other(capsys):
    def broken(clock, shown):
        raise MissingError("no room")

    def fine(clock, shown):
        return [Figure("c", 1.0)]

    parts = [Part("one", ("a", "b"), broken, 5.0), Part("two", ("c",), fine, 7.0)]
    found = list(replay_progress.measure_parts(parts, bench.Options()))
    assert [(f.id, f.value, f.ok) for f in found] == [
        ("a", None, False),
        ("b", None, False),
        ("c", 1.0, None),
    ]
    assert "no room" in found[0].note
    shown = capsys.readouterr()
    assert "two: at most 7 s" in shown.err
    assert not shown.out
    only = bench.Options(only=("c",))
    assert [f.id for f in replay_progress.measure_parts(parts, only)] == ["c"]


def test_a_part_has_so_much_time_and_no_more():
    now = 0.0
    clock = Clock(10.0, lambda: now)
    now = 4.0
    assert clock.left() == 6.0
    now = 10.0
    with pytest.raises(LinkError, match="longer than 10 s"):
        clock.left()


def test_every_figure_of_the_issue_is_measured():
    wanted = {"sample_ratio", "cold_first_batch_s", "sample_ratio_writing", "writer_rss_mb"}
    wanted |= {"disk_ratio", "open_s", "verify_mb_s", "checkpoint_stall_s", "reader_rss_mb"}
    assert {f"replay.{name}" for name in wanted} == set(replay.IDS)
    assert len(replay.IDS) == len(wanted)
    with pytest.raises(ConfigError, match=r"replay\.open_s"):
        bench.run("replay", bench.Options(only=("replay.opn_s",)))


def test_the_command_names_what_was_chosen():
    options = bench.Options(directory=Path("there"), quick=True)
    assert bench.command("replay", options) == "user-system bench replay --dir there --quick"
    assert bench.command("replay", bench.Options()) == "user-system bench replay"


def test_too_small_a_disk_is_said_before_anything_is_written(tmp_path):
    with Stage(tmp_path, TINY) as stage, pytest.raises(MissingError, match="not enough space"):
        stage.require(1 << 60)
    assert not list(tmp_path.iterdir())


@pytest.mark.system
def test_a_process_says_what_broke_and_is_not_waited_for(tmp_path):
    def all_of_it() -> None:
        with child:
            with pytest.raises(LinkError, match="KeyError"):
                child.ask("no such question", GENEROUS_S)
            with pytest.raises(LinkError, match="there is no store"):
                child.ask("begin", GENEROUS_S, path=str(tmp_path / "none"), sizes={})
            wanted = {"path": str(tmp_path / "store"), "sizes": {}, "steps": 10**9}
            child.ask("fill", 0.5, **wanted)

    child = Child(WRITER, tmp_path, "writer")
    with pytest.raises(LinkError, match="longer than"):
        all_of_it()
    assert child._process.returncode == -signal.SIGKILL
    with (
        Child("user_system.no_such", tmp_path, "nobody") as nobody,
        pytest.raises(LinkError, match=r"ended; got .*No module"),
    ):
        nobody.ask("hello", GENEROUS_S)


@pytest.mark.system
@pytest.mark.timeout(300)
def test_all_figures_are_measured_and_nothing_is_left(tmp_path):
    options = bench.Options(directory=tmp_path, quick=True)
    found = {figure.id: figure for figure in replay.measure(options)}
    assert tuple(found) == replay.IDS
    for name, figure in found.items():
        if name == "replay.sample_ratio_writing" and figure.value is None:
            assert "fell behind" in figure.note  # so may a tiny run on a busy machine
        else:
            assert figure.value is not None, figure
            assert figure.value > 0
        assert figure.goal
    assert found["replay.disk_ratio"].value > 1.0  # noise does not shrink
    assert not list(tmp_path.iterdir())
