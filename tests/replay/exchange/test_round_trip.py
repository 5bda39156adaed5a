"""Out as a LeRobotDataset v3 and in again: the same rows, bit for bit."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from user_system.core.errors import ConfigError
from user_system.core.types import End, Purpose, Segment, Stream
from user_system.replay.episodes import Episodes
from user_system.replay.exchange import lerobot_export, lerobot_import
from user_system.replay.store import Store, reader

DTYPES = ["bool", "float16", "float32", "float64", "int8", "uint8", "uint16", "int32", "uint64"]
TAILS = [(), (1,), (3,), (2, 1), (1, 2, 2), (2, 1, 1, 1, 2, 1), (0,), (2, 0)]
CAMERAS = [(1, 1, 1), (5, 7, 3), (4, 4, 4), (3, 2, 2), (2, 3, 9), (8, 8, 3)]
NAMES = ["joints", "state", "a/b", "a_b", "Grüße", "action", "x y", "..", "next.done"]


def export(store, target, **options):
    with reader(store).open() as env:
        return lerobot_export.export(Episodes(env), target, lerobot_export.Options(**options))


def into(store, source, **options):
    return lerobot_import.import_dataset(
        store, source, lerobot_import.Options(**options), create=True
    )


forms = st.tuples(st.sampled_from(DTYPES), st.sampled_from(TAILS)).filter(
    lambda form: not (form[0] == "uint8" and len(form[1]) == 3)
)

yes = st.booleans()
verdicts = st.sampled_from([None, True, False])


@settings(
    max_examples=30,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
@given(data=st.data())
def test_any_recording_comes_back_bit_for_bit(kit, filled, quick_path, data):
    """Odd shapes, several cameras, extras, streams, rewinds, NaN, lost fragments, open ends."""
    seed = data.draw(st.integers(0, 1 << 32), "seed")
    rng = np.random.default_rng(seed)
    kind = kit.Kind(
        fields=data.draw(st.dictionaries(st.sampled_from(NAMES), forms, max_size=4), "fields"),
        cameras={
            f"cam {name}": shape
            for name, shape in data.draw(
                st.dictionaries(st.sampled_from(NAMES), st.sampled_from(CAMERAS), max_size=2),
                "cameras",
            ).items()
        },
        extras=data.draw(st.dictionaries(st.sampled_from(NAMES), forms, max_size=2), "extras"),
        streams=data.draw(st.dictionaries(st.sampled_from(NAMES), forms, max_size=2), "streams"),
        action=data.draw(st.integers(1, 4), "action"),
    )
    lives = [kit.Life(rng, kind, producer=p, epoch=e, robot=p) for p, e in (("a", 1), ("b", 9))]
    parts, labels = [], []
    for _ in range(data.draw(st.integers(1, 4), "episodes")):
        life = data.draw(st.sampled_from(lives))
        episode = recorded(life, kind, data)
        parts += episode
        labels += labelled(rng, episode, data)
    with tempfile.TemporaryDirectory(dir=quick_path) as place:
        root = Path(place)
        with Store(root / "store").open(create=True) as store:
            refused = store.append(parts)
            for label in labels:
                store.label(*label)
        if len(refused) == len(parts):
            return
        done = export(root / "store", root / "out")
        back = into(root / "back", root / "out")
        count = kit.same_store(root / "store", root / "back")
        assert count == done.episodes == back.episodes
        assert into(root / "back", root / "out").steps == 0


def recorded(life, kind, data):
    """One episode as it may arrive at the store: with a rewind, a lost fragment, no end."""
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4), "lengths")
    voids = {}
    for i in range(1, len(lengths)):
        if data.draw(st.integers(0, 4)) == 0:
            voids[i] = data.draw(st.integers(0, sum(lengths[:i])), "void_from")
    episode = life.episode(
        lengths,
        data.draw(st.sampled_from(End), "end"),
        voids=voids,
        success=data.draw(verdicts),
        task=data.draw(st.sampled_from(["", "pick", "push the\nred one"])),
        purpose=data.draw(st.sampled_from(Purpose)),
    )
    made = []
    for part in episode:
        extras = dict(part.extras) if data.draw(yes) else {}
        streams = samples_of(life.rng, kind, part, [n for n in kind.streams if data.draw(yes)])
        part = dataclasses.replace(part, extras=extras, streams=streams)
        gone = data.draw(st.integers(0, 6)) == 0
        made.append(dataclasses.replace(part, reward=np.zeros(0, np.float32)) if gone else part)
    return made


def samples_of(rng, kind, part, names):
    found = {}
    for name in names:
        dtype, tail = kind.streams[name]
        count = int(rng.integers(0, 4))
        stamps = np.sort(rng.integers(part.robot_ns[0], part.robot_ns[-1] + 1, count))
        found[name] = Stream(stamps, rng.integers(0, 2, (count, *tail)).astype(dtype))
    return found


def labelled(rng, episode, data):
    name = episode[0].header.episode
    found = []
    for label in ("reward", "value", "a/b"):
        if data.draw(st.integers(0, 3)) == 0:
            values = rng.normal(size=data.draw(st.integers(1, 15))).astype(np.float32)
            values[rng.random(len(values)) < 0.3] = np.nan
            found.append((name, label, f"v{len(found)}", None, values))
    if data.draw(st.booleans()):
        found.append(
            (name, "success", "judge", data.draw(st.sampled_from([None, True, False])), None)
        )
    return found


def test_a_real_looking_one_comes_back(tmp_path, kit, rng, filled):
    kind = kit.Kind(
        fields={"joints": ("float32", (7,)), "gripper": ("float64", ()), "contact": ("bool", (2,))},
        cameras={"front": (24, 32, 3), "wrist": (16, 16, 3)},
        extras={"logp": ("float32", ())},
        streams={"force": ("float32", (6,))},
    )
    life = kit.Life(rng, kind)
    parts = [
        *life.episode([20, 20, 7], voids={1: 12}, success=True, streams={"force": 40}),
        *life.episode([20, 20], End.TIMEOUT, streams={"force": 0}),
        *life.episode([5], End.NONE),
    ]
    store = filled(parts, [("arm-1", "reward", "v1", None, np.arange(47, dtype=np.float32))])
    done = export(store, tmp_path / "out")
    assert (done.episodes, done.steps) == (3, 92)
    back = into(tmp_path / "back", tmp_path / "out")
    assert (back.ours, back.steps, back.present, back.ignored) == (True, 92, 0, {})
    assert kit.same_store(store, tmp_path / "back") == 3
    with reader(tmp_path / "back").open() as env:
        mine = [p.header for e in Episodes(env) for p in e.pieces]
    assert {(h.producer, h.epoch) for h in mine} == {("import", back.epoch)}
    assert [h.sequence for h in mine] == list(range(len(parts)))
    for header, part in zip(mine, parts, strict=True):
        assert header.wall_ns == part.header.wall_ns
        assert header.wall_bound_ns == part.header.wall_bound_ns
        assert header.void_from == part.header.void_from


def test_long_fragments_come_back_in_parts_of_fifty(tmp_path, kit, rng, filled):
    kind = kit.Kind(streams={"force": ("float32", (6,))}, extras={"n": ("int64", (2,))})
    life = kit.Life(rng, kind)
    parts = life.episode([130, 3], voids={1: 90}, streams={"force": 500})
    store = filled(parts)
    export(store, tmp_path / "out")
    into(tmp_path / "back", tmp_path / "out")
    assert kit.same_store(store, tmp_path / "back") == 1
    with reader(tmp_path / "back").open() as env:
        (episode,) = Episodes(env)
    assert [p.steps for p in episode.pieces] == [50, 50, 30, 3]
    assert [p.header.void_from for p in episode.pieces] == [None, None, None, 90]
    assert sum(p.streams["force"] for p in episode.pieces[:3]) == 500
    for piece in episode.pieces[:3]:  # each sample lies with the steps it was taken in
        done = sum(p.streams["force"] for p in episode.pieces if p.first < piece.first)
        stamps = episode.streams["force"].stamps[done : done + piece.streams["force"]]
        assert (stamps[1:] >= episode.robot_ns[piece.first]).all()


def contents(root):
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root): path.read_bytes() for path in files}


def test_an_export_is_a_function_of_the_store(tmp_path, kit, rng, filled):
    kind = kit.Kind(cameras={"c": (8, 8, 3)})
    store = filled(kit.Life(rng, kind).episode([9, 4]))
    for name in ("one", "two"):
        export(store, tmp_path / name)
    files = [
        {
            p.relative_to(tmp_path / n): p.read_bytes()
            for p in (tmp_path / n).rglob("*.*")
            if p.is_file()
        }
        for n in ("one", "two")
    ]
    assert files[0] == files[1]
    assert files[0]


def test_video_keeps_all_but_the_pixels(tmp_path, kit, rng, filled):
    kind = kit.Kind(cameras={"front": (32, 48, 3), "grey": (8, 8, 1)})
    life = kit.Life(rng, kind)
    parts = [*life.episode([20, 7], voids={1: 4}, success=True), *life.episode([5], End.TIMEOUT)]
    number = 0
    for part in parts:
        rows = range(number, number + len(part.robot_ns))
        part.observation["front"][:] = np.stack([kit.smooth((32, 48, 3), n) for n in rows])
        number += len(part)
    store = filled(parts)
    done = export(store, tmp_path / "out", images="video")
    into(tmp_path / "back", tmp_path / "out")
    assert kit.same_store(store, tmp_path / "back", images=False) == 2
    pairs = zip(kit.episodes_of(store), kit.episodes_of(tmp_path / "back"), strict=True)
    for (_, was), (_, now) in pairs:
        kit.equal(was["grey"], now["grey"])
        kit.equal(was["front"][-1], now["front"][-1])  # the last observation is a PNG
        assert not np.array_equal(was["front"], now["front"])
        assert kit.decibels(was["front"], now["front"]) >= done.loss["front"]["worst_frame_db"]
    assert done.loss["front"]["psnr_db"] > 30
    assert done.loss["front"]["frames"] == 32


def test_chosen_segments_come_back_as_unbroken_stretches(tmp_path, kit, rng, filled):
    life = kit.Life(rng, kit.Kind(streams={"force": ("float32", ())}))
    (part,) = life.episode([10], streams={"force": 4})
    demo, auto = int(Segment.DEMO), int(Segment.AUTO)
    part.segment[:] = [demo, demo, auto, demo, auto, demo, demo, demo, auto, demo]
    store = filled([part])
    done = export(store, tmp_path / "out", segments=frozenset({Segment.DEMO}))
    assert (done.episodes, done.steps) == (4, 7)
    into(tmp_path / "back", tmp_path / "out")
    with reader(tmp_path / "back").open() as env:
        found = [(e.header.start, len(e), e.complete) for e in Episodes(env)]
    # Steps 2, 4 and 8 are missing, and nothing was joined over them.
    assert found == [(0, 2, False), (3, 1, False), (5, 3, False), (9, 1, True)]
    ((whole, _),) = kit.episodes_of(store)
    for episode, _ in kit.episodes_of(tmp_path / "back"):
        low = episode.header.start
        kit.equal(episode.columns["executed"], whole.columns["executed"][low : low + len(episode)])
        assert episode.streams == {}


def test_steps_that_a_rewind_undid_are_in_no_stretch(tmp_path, kit, rng, filled):
    life = kit.Life(rng, kit.Kind())
    parts = life.episode([6, 4], voids={1: 4})
    for part in parts:
        part.segment[:] = int(Segment.AUTO)
    store = filled(parts)
    assert export(store, tmp_path / "all").steps == 10
    done = export(store, tmp_path / "out", segments=frozenset({Segment.AUTO}))
    assert (done.episodes, done.steps) == (2, 8)


def test_the_store_it_came_from_refuses_it(tmp_path, kit, rng, filled):
    store = filled(kit.Life(rng, kit.Kind()).episode([4]))
    export(store, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"has episode 'arm-1' of .* already; got from 'arm'"):
        into(store, tmp_path / "out")


def test_an_interrupted_import_goes_on_where_it_stopped(tmp_path, kit, rng, filled, monkeypatch):
    life = kit.Life(rng, kit.Kind())
    store = filled([part for _ in range(4) for part in life.episode([3, 2])])
    export(store, tmp_path / "out")
    monkeypatch.setattr(lerobot_import, "_BATCH_BYTES", 1)
    append, calls = Store.append, []

    def fail(self, fragments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return append(self, fragments)

    monkeypatch.setattr(Store, "append", fail)
    with pytest.raises(KeyboardInterrupt):
        into(tmp_path / "back", tmp_path / "out")
    monkeypatch.setattr(Store, "append", append)
    again = into(tmp_path / "back", tmp_path / "out")
    assert (again.present, again.fragments) == (3, 5)
    assert kit.same_store(store, tmp_path / "back") == 4


def test_other_names_for_the_same_dataset_are_refused(tmp_path, kit, rng, filled):
    store = filled(kit.Life(rng, kit.Kind()).episode([4]))
    export(store, tmp_path / "out")
    done = into(tmp_path / "back", tmp_path / "out", robot="twin", task="else", run="r2")
    with reader(tmp_path / "back").open() as env:
        (episode,) = Episodes(env)
    header = episode.header
    assert (header.robot, header.task, header.run) == ("twin", "else", "r2")
    with pytest.raises(ConfigError, match=f"epoch {done.epoch}"):
        into(tmp_path / "back", tmp_path / "out", robot="another")
