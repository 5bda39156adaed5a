"""What others read in our datasets: with pyarrow, Pillow and PyAV alone, nothing of ours."""

import io
import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from user_system.core.errors import ConfigError, DamageError, SpecError
from user_system.core.types import End, Segment
from user_system.replay import images
from user_system.replay.episodes import Episodes
from user_system.replay.exchange import lerobot_export
from user_system.replay.store import Store, reader

FIELDS = {"joints": ("float32", (7,)), "gripper": ("float64", ()), "depth": ("uint16", (4, 5))}
CAMERAS = {"front": (12, 16, 3), "grey": (5, 7, 1), "stack": (4, 4, 9)}


def export(store, target, **options):
    with reader(store).open() as env:
        return lerobot_export.export(Episodes(env), target, lerobot_export.Options(**options))


@pytest.fixture
def recorded(kit, rng, filled):
    """Three episodes of one robot, and the store they are in."""
    kind = kit.Kind(fields=FIELDS, cameras=CAMERAS, extras={"logp": ("float32", ())})
    life = kit.Life(rng, kind)
    episodes = [
        life.episode([10, 10, 3], success=True, task="pick"),
        life.episode([10, 2], End.TIMEOUT, task="push"),
        life.episode([6], End.NONE, task="pick"),
    ]
    labels = [
        ("arm-1", "value", "v7", None, np.arange(23, dtype=np.float32)),
        ("arm-2", "reward", "v8", None, np.full(12, 0.25, np.float32)),
    ]
    return episodes, filled([part for episode in episodes for part in episode], labels)


def rows(root):
    """All frames, as plain pyarrow reads them."""
    paths = sorted((root / "data").glob("*/*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def listed(root):
    paths = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def info_of(root):
    return json.loads((root / "meta" / "info.json").read_text())


def column(rows, key, dtype):
    return np.array([row[key] for row in rows], dtype)


def test_rows_are_bit_equal_through_an_independent_reader(tmp_path, recorded):
    episodes, store = recorded
    export(store, tmp_path / "out")
    found = rows(tmp_path / "out")
    parts = [part for episode in episodes for part in episode]

    def written(take):
        return np.concatenate([take(part)[: len(part)] for part in parts])

    for key, take in {
        "observation.joints": lambda p: p.observation["joints"],
        "observation.gripper": lambda p: p.observation["gripper"],
        "observation.depth": lambda p: p.observation["depth"],
        "observation.images.stack": lambda p: p.observation["stack"],
        "action": lambda p: p.executed,
        "user_system.segment": lambda p: p.segment,
        "user_system.end": lambda p: p.end,
        "user_system.robot_ns": lambda p: p.robot_ns,
        "user_system.version": lambda p: p.version,
        "user_system.chunk": lambda p: p.chunk,
        "user_system.position": lambda p: p.position,
    }.items():
        wanted = written(take)
        got = column(found, key, wanted.dtype)
        assert (got.shape, got.tobytes()) == (wanted.shape, wanted.tobytes()), key
    for camera, shape in (("front", (12, 16, 3)), ("grey", (5, 7, 1))):
        wanted = written(lambda p, c=camera: p.observation[c])
        for row, image in zip(found, wanted, strict=True):
            with Image.open(io.BytesIO(row[f"observation.images.{camera}"]["bytes"])) as opened:
                assert opened.format == "PNG"
                np.testing.assert_array_equal(np.asarray(opened).reshape(shape), image)
    names = [part.header.names[i] for part in parts for i in part.operator]
    assert [row["user_system.operator"] for row in found] == names


def test_floats_with_nan_are_bit_equal_too(tmp_path, recorded):
    episodes, store = recorded
    export(store, tmp_path / "out")
    table = pq.read_table(next((tmp_path / "out" / "data").rglob("*.parquet")))
    parts = [part for episode in episodes for part in episode]
    for key, name in (
        ("user_system.proposed", "proposed"),
        ("user_system.recorded_reward", "reward"),
        ("complementary_info.logp", "logp"),
    ):
        wanted = np.concatenate(
            [p.extras["logp"] if name == "logp" else getattr(p, name) for p in parts]
        )
        got = table[key].combine_chunks()
        flat = got.flatten() if name == "proposed" else got
        assert flat.to_numpy().tobytes() == wanted.tobytes()


def test_the_numbering_is_what_readers_count_on(tmp_path, recorded):
    _, store = recorded
    export(store, tmp_path / "out")
    info, found = info_of(tmp_path / "out"), rows(tmp_path / "out")
    lengths = [23, 12, 6]
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 41, 2)
    assert info["splits"] == {"train": "0:3"}
    assert [row["index"] for row in found] == list(range(41))
    assert [r["episode_index"] for r in found] == [
        i for i, n in enumerate(lengths) for _ in range(n)
    ]
    assert [row["frame_index"] for row in found] == [k for n in lengths for k in range(n)]
    for row in found:
        assert row["timestamp"] == pytest.approx(row["frame_index"] / info["fps"], abs=1e-6)
    first = 0
    for i, (row, length) in enumerate(zip(listed(tmp_path / "out"), lengths, strict=True)):
        assert (row["episode_index"], row["length"]) == (i, length)
        assert (row["dataset_from_index"], row["dataset_to_index"]) == (first, first + length)
        path = info["data_path"].format(
            chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )
        with pq.ParquetFile(tmp_path / "out" / path) as file:
            assert file.read_row_group(i)["episode_index"].to_pylist() == [i] * length
        first += length
    tasks = pq.read_table(tmp_path / "out" / "meta" / "tasks.parquet").to_pylist()
    assert tasks == [{"task_index": 0, "task": "pick"}, {"task_index": 1, "task": "push"}]
    assert [row["tasks"] for row in listed(tmp_path / "out")] == [["pick"], ["push"], ["pick"]]
    assert [row["task_index"] for row in found] == [0] * 23 + [1] * 12 + [0] * 6


def test_features_state_what_is_stored(tmp_path, recorded):
    _, store = recorded
    export(store, tmp_path / "out")
    features = info_of(tmp_path / "out")["features"]
    (path,) = (tmp_path / "out" / "data").rglob("*.parquet")
    schema = pq.read_schema(path)
    assert list(features) == schema.names
    notes = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(notes) == schema.names
    assert features["observation.images.front"] == {
        "dtype": "image", "shape": [12, 16, 3], "names": ["height", "width", "channels"],
    }  # fmt: skip
    assert notes["observation.images.front"] == {"_type": "Image"}
    assert features["action"]["shape"] == [2]
    assert features["observation.gripper"]["shape"] == [1]
    assert notes["observation.depth"] == {"shape": [4, 5], "dtype": "uint16", "_type": "Array2D"}
    state = features["observation.state"]
    assert state["shape"] == [8]
    assert state["names"] == ["gripper", *(f"joints.{i}" for i in range(7))]


def test_every_episode_ends_for_those_who_only_know_done(tmp_path, recorded):
    _, store = recorded
    export(store, tmp_path / "out")
    found = rows(tmp_path / "out")
    assert [r["index"] for r in found if r["next.done"]] == [22, 34, 40]
    assert [r["index"] for r in found if r["next.truncated"]] == [34, 40]
    ends = [End(r["user_system.end"]) for r in found if r["next.done"]]
    assert ends == [End.TERMINATED, End.TIMEOUT, End.NONE]


def test_labels_stand_in_columns_and_go_over_the_reward(tmp_path, recorded):
    episodes, store = recorded
    export(store, tmp_path / "out")
    found = rows(tmp_path / "out")
    assert [row["user_system.label.value"] for row in found[:23]] == list(range(23))
    assert all(np.isnan(row["user_system.label.value"]) for row in found[23:])
    assert [row["next.reward"] for row in found[23:35]] == [0.25] * 12
    recorded_reward = np.concatenate([part.reward for part in episodes[1]])
    kept = column(found[23:35], "user_system.recorded_reward", np.float32)
    np.testing.assert_array_equal(kept, recorded_reward)
    versions = [json.loads(row["user_system/label_versions"]) for row in listed(tmp_path / "out")]
    assert versions == [{"value": "v7"}, {"reward": "v8"}, {}]


def test_what_is_known_of_an_episode_stands_in_its_row(tmp_path, recorded):
    _, store = recorded
    export(store, tmp_path / "out")
    first, second, third = listed(tmp_path / "out")
    for name, value in {
        "producer": "arm", "epoch": 3, "episode": "arm-1", "run": "run", "robot": "left",
        "purpose": "TRAIN", "start": 0, "complete": True, "success": True, "schema": "s",
    }.items():  # fmt: skip
        assert first[f"user_system/{name}"] == value
    assert second["user_system/success"] is None
    assert [r["user_system/complete"] for r in (first, second, third)] == [True, True, False]


def test_the_last_observation_stands_beside_the_frames(tmp_path, recorded):
    episodes, store = recorded
    export(store, tmp_path / "out")
    (path,) = (tmp_path / "out" / "user_system" / "last").rglob("*.parquet")
    found = pq.read_table(path).to_pylist()
    assert [row["episode_index"] for row in found] == [0, 1]
    for row, episode in zip(found, episodes[:2], strict=True):
        last = episode[-1]
        assert row["robot_ns"] == last.robot_ns[-1]
        joints = np.array(row["observation.joints"], np.float32)
        np.testing.assert_array_equal(joints, last.observation["joints"][-1])
        with Image.open(io.BytesIO(row["observation.images.front"]["bytes"])) as image:
            np.testing.assert_array_equal(np.asarray(image), last.observation["front"][-1])


def test_statistics_are_those_of_the_rows(tmp_path, kit, rng, filled):
    kind = kit.Kind(fields={"x": ("int16", (2,))}, cameras={"c": (4, 6, 3)})
    life = kit.Life(rng, kind)
    parts = [*life.episode([9]), *life.episode([5])]
    export(filled(parts), tmp_path / "out")
    whole = json.loads((tmp_path / "out" / "meta" / "stats.json").read_text())
    x = np.concatenate([p.observation["x"][: len(p)] for p in parts]).astype(np.float64)
    np.testing.assert_allclose(whole["observation.x"]["mean"], x.mean(0))
    np.testing.assert_allclose(whole["observation.x"]["std"], x.std(0))
    assert whole["observation.x"]["max"] == x.max(0).tolist()
    pixels = np.concatenate([p.observation["c"][: len(p)] for p in parts]) / 255
    np.testing.assert_allclose(
        np.ravel(whole["observation.images.c"]["mean"]), pixels.mean((0, 1, 2))
    )
    assert np.shape(whole["observation.images.c"]["std"]) == (3, 1, 1)
    assert whole["observation.images.c"]["count"] == [14]
    for row, part in zip(listed(tmp_path / "out"), parts, strict=True):
        values = part.observation["x"][: len(part)].astype(np.float64)
        np.testing.assert_allclose(row["stats/observation.x/min"], values.min(0))
        np.testing.assert_allclose(row["stats/observation.x/q50"], np.quantile(values, 0.5, axis=0))
        assert row["stats/observation.x/count"] == [len(part)]
        wanted = part.observation["c"][: len(part)].max((0, 1, 2)) / 255
        np.testing.assert_allclose(np.ravel(row["stats/observation.images.c/max"]), wanted)


def test_files_stay_below_the_limits(tmp_path, kit, rng, filled):
    kind = kit.Kind(cameras={"c": (32, 32, 3)})
    life = kit.Life(rng, kind)
    store = filled([part for _ in range(8) for part in life.episode([20])])
    export(store, tmp_path / "out", data_mb=0.15)
    files = sorted((tmp_path / "out" / "data").rglob("*.parquet"))
    assert len(files) >= 4
    assert all(path.stat().st_size <= 0.15 * 2**20 for path in files)
    assert len(rows(tmp_path / "out")) == 160
    export(store, tmp_path / "video", images="video", video_mb=0.1)
    videos = sorted((tmp_path / "video" / "videos").rglob("*.mp4"))
    assert len(videos) >= 2
    assert all(path.stat().st_size <= 0.1 * 2**20 for path in videos)
    placed = {r["videos/observation.images.c/file_index"] for r in listed(tmp_path / "video")}
    assert len(placed) == len(videos)


def test_damaged_images_leave_their_fragment_out(tmp_path, recorded, monkeypatch):
    _, store = recorded
    read = images.read_stack

    def damaged(txn, table, offset, camera, count, shape):
        if (offset, camera) == (1, 0):
            raise DamageError("flipped")
        return read(txn, table, offset, camera, count, shape)

    monkeypatch.setattr(images, "read_stack", damaged)
    done = export(store, tmp_path / "out")
    assert done.found["damaged_images"] == 1
    assert (done.episodes, done.steps) == (4, 31)
    starts = [row["user_system/start"] for row in listed(tmp_path / "out")]
    assert starts == [0, 20, 0, 0]
    assert info_of(tmp_path / "out")["user_system"]["read"]["damaged_images"] == 1


def test_rows_of_two_schemas_are_refused(tmp_path, kit, rng, filled):
    one = kit.Life(rng, kit.Kind(), producer="a", robot="a")
    two = kit.Life(rng, kit.Kind(fields={"x": ("int8", ())}, schema="t"), producer="b", robot="b")
    store = filled([*one.episode([3]), *two.episode([4])])
    with pytest.raises(SpecError, match=r"several schemas.*got \['s', 't'\].*Choose some with"):
        export(store, tmp_path / "out")
    with reader(store).open() as env:
        chosen = Episodes(env, robots=["b"])
        done = lerobot_export.export(chosen, tmp_path / "out", lerobot_export.Options())
    assert done.steps == 4


def test_nothing_to_export_is_an_error(tmp_path, recorded):
    _, store = recorded
    with reader(store).open() as env, pytest.raises(ConfigError, match="no such step"):
        lerobot_export.export(
            Episodes(env, robots=["nobody"]), tmp_path / "out", lerobot_export.Options()
        )
    assert not (tmp_path / "out").exists()


def test_a_target_that_is_there_is_left_alone(tmp_path, recorded):
    _, store = recorded
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ConfigError, match="exists already"):
        export(store, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("fps", [0, -3, 1 << 20])
def test_a_frame_rate_that_is_none_is_refused(tmp_path, recorded, fps):
    _, store = recorded
    with pytest.raises(ConfigError, match="frames per second"):
        export(store, tmp_path / "out", fps=fps)


def test_a_killed_export_never_looks_finished(tmp_path, kit, rng, filled):
    """Killed after any number of steps, there is no dataset; and the next try makes one."""
    store = filled(kit.Life(rng, kit.Kind()).episode([5]))
    code = """
        import os, signal, sys
        from pathlib import Path
        from user_system.replay.episodes import Episodes
        from user_system.replay.exchange import lerobot_export
        from user_system.replay.store import reader

        def told(done, total):
            os.kill(os.getpid(), signal.SIGKILL)

        with reader(sys.argv[1]).open() as env:
            options = lerobot_export.Options()
            lerobot_export.export(Episodes(env), Path(sys.argv[2]), options, told)
    """
    argv = [sys.executable, "-c", textwrap.dedent(code), str(store), str(tmp_path / "out")]
    assert subprocess.run(argv, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    export(store, tmp_path / "out")
    assert len(rows(tmp_path / "out")) == 5


def test_a_full_disk_leaves_nothing(tmp_path, recorded, monkeypatch):
    _, store = recorded
    from user_system.core.errors import StoreError
    from user_system.replay.exchange import lerobot_export as module

    def fail(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(module.picture, "encode", fail)
    with pytest.raises(StoreError, match="No space left"):
        export(store, tmp_path / "out")
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def test_two_meanings_of_an_extra_are_two_columns(tmp_path, kit, rng, filled):
    one = kit.Life(rng, kit.Kind(extras={"z": ("float32", (2,))}), producer="a")
    two = kit.Life(rng, kit.Kind(extras={"z": ("int64", ())}), producer="b")
    export(filled([*one.episode([3]), *two.episode([4])]), tmp_path / "out")
    features = info_of(tmp_path / "out")["features"]
    assert features["complementary_info.z"]["dtype"] == "float32"
    assert features["complementary_info.z.2"]["dtype"] == "int64"


def test_reading_does_not_disturb_a_writer(tmp_path, kit, rng):
    life = kit.Life(rng, kit.Kind())
    with Store(tmp_path / "s").open(create=True) as store:
        store.append(life.episode([4]))
        done = lerobot_export.export(
            Episodes(store.env), tmp_path / "out", lerobot_export.Options(),
            lambda *_: store.append(life.episode([4])),
        )  # fmt: skip
        assert done.steps == 4
        assert store.expected("arm", 3) == 2


def test_segments_narrow_it_down(tmp_path, kit, rng, filled):
    (part,) = kit.Life(rng, kit.Kind()).episode([6])
    part.segment[:] = [2, 1, 1, 2, 1, 2]
    store = filled([part])
    done = export(store, tmp_path / "out", segments=frozenset({Segment.DEMO}))
    assert (done.episodes, done.steps) == (2, 3)
    found = rows(tmp_path / "out")
    assert [row["user_system.robot_ns"] for row in found] == part.robot_ns[[1, 2, 4]].tolist()
    assert info_of(tmp_path / "out")["user_system"]["segments"] == ["DEMO"]
    with pytest.raises(ConfigError, match="no such step"):
        export(store, tmp_path / "none", segments=frozenset({Segment.REWIND}))
