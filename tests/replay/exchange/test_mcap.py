"""MCAP files, read back with the mcap library alone."""

import base64
import io
import json

import numpy as np
import pytest
from mcap.exceptions import McapError
from mcap.reader import make_reader
from PIL import Image

from user_system.core.errors import ConfigError, SpecError
from user_system.core.types import End, Segment
from user_system.replay.episodes import Episodes
from user_system.replay.exchange import mcap_export
from user_system.replay.store import reader

CAMERAS = {"front": (6, 8, 3), "stack": (4, 4, 9)}


def export(store, target, **options):
    with reader(store).open() as env:
        return mcap_export.export(Episodes(env), target, **options)


def messages(path):
    """Topic -> list of (log_time, publish_time, sequence, schema, value), in order of the log."""
    found = {}
    with path.open("rb") as file:
        for schema, channel, message in make_reader(file).iter_messages():
            assert (schema.encoding, channel.message_encoding) == ("jsonschema", "json")
            title = json.loads(schema.data)["title"]
            assert title == schema.name
            row = message.log_time, message.publish_time, message.sequence, title
            found.setdefault(channel.topic, []).append((*row, json.loads(message.data)))
    return found


@pytest.fixture
def recorded(kit, rng, filled):
    kind = kit.Kind(
        fields={"joints": ("float32", (3,)), "n": ("int64", ())},
        cameras=CAMERAS,
        extras={"logp": ("float32", ())},
        streams={"force": ("float64", (2,))},
    )
    life = kit.Life(rng, kind)
    parts = [
        *life.episode([5, 3], success=True, streams={"force": 7}),
        *life.episode([4], End.NONE, streams={"force": 2}),
    ]
    labels = [("arm-1", "value", "v", None, np.arange(8, dtype=np.float32))]
    return parts, filled(parts, labels)


def test_each_kind_of_thing_has_a_channel_at_capture_time(tmp_path, recorded):
    parts, store = recorded
    done = export(store, tmp_path / "out.mcap")
    found = messages(tmp_path / "out.mcap")
    assert set(found) == {
        "/left/episode", "/left/observation", "/left/step", "/left/camera/front",
        "/left/camera/stack", "/left/stream/force",
    }  # fmt: skip
    seen = np.concatenate([part.robot_ns for part in parts]).tolist()
    steps = np.concatenate([part.robot_ns[: len(part)] for part in parts]).tolist()
    for topic in ("observation", "camera/front", "camera/stack"):
        assert [row[0] for row in found[f"/left/{topic}"]] == seen
    assert [row[0] for row in found["/left/step"]] == steps
    stamps = np.concatenate([part.streams["force"].stamps for part in parts])
    assert [row[0] for row in found["/left/stream/force"]] == sorted(stamps.tolist())
    assert done.messages == sum(map(len, found.values()))
    assert (done.episodes, done.steps) == (2, 12)


def test_values_are_those_recorded_and_null_where_not_known(tmp_path, recorded):
    parts, store = recorded
    export(store, tmp_path / "out.mcap")
    found = messages(tmp_path / "out.mcap")
    joints = [row[4]["joints"] for row in found["/left/observation"]]
    wanted = np.concatenate([part.observation["joints"] for part in parts])
    np.testing.assert_array_equal(np.array(joints, np.float32), wanted)
    steps = [row[4] for row in found["/left/step"]]
    executed = np.concatenate([part.executed for part in parts])
    np.testing.assert_array_equal(np.array([s["executed"] for s in steps], np.float32), executed)
    proposed = np.concatenate([part.proposed for part in parts])
    got = np.array([s["proposed"] for s in steps], np.float64).astype(np.float32)  # None is NaN
    np.testing.assert_array_equal(got, proposed)
    names = [Segment(s).name for part in parts for s in part.segment]
    assert [s["segment"] for s in steps] == names
    assert [s["labels"]["value"] for s in steps[:8]] == list(range(8))
    assert steps[7]["end"] == "TERMINATED"
    assert [s["step"] for s in steps] == [*range(8), *range(4)]
    logp = np.concatenate([part.extras["logp"] for part in parts])
    got = np.array([s["extras"]["logp"] for s in steps], np.float64).astype(np.float32)
    np.testing.assert_array_equal(got, logp)


def test_images_are_what_viewers_know_pixel_for_pixel(tmp_path, recorded):
    parts, store = recorded
    export(store, tmp_path / "out.mcap")
    found = messages(tmp_path / "out.mcap")
    front = np.concatenate([part.observation["front"] for part in parts])
    for (stamp, _, _, title, message), image in zip(
        found["/left/camera/front"], front, strict=True
    ):
        assert (title, message["format"]) == ("foxglove.CompressedImage", "png")
        assert message["timestamp"] == {"sec": stamp // 10**9, "nsec": stamp % 10**9}
        with Image.open(io.BytesIO(base64.b64decode(message["data"]))) as opened:
            np.testing.assert_array_equal(np.asarray(opened), image)
    stack = np.concatenate([part.observation["stack"] for part in parts])
    for (_, _, _, title, message), image in zip(found["/left/camera/stack"], stack, strict=True):
        assert (title, message["encoding"], message["step"]) == ("foxglove.RawImage", "8UC9", 36)
        assert base64.b64decode(message["data"]) == image.tobytes()


def test_episodes_are_marked_and_utc_is_the_publish_time(tmp_path, recorded):
    parts, store = recorded
    export(store, tmp_path / "out.mcap")
    found = messages(tmp_path / "out.mcap")
    marks = [row[4] for row in found["/left/episode"]]
    assert [(m["event"], m["episode"], m["step"]) for m in marks] == [
        ("begin", "arm-1", 0), ("end", "arm-1", 8), ("begin", "arm-2", 0), ("end", "arm-2", 3),
    ]  # fmt: skip
    assert [m["success"] for m in marks] == [True, True, None, None]
    first = found["/left/observation"][0]
    assert first[1] == parts[0].header.wall_ns
    assert found["/left/observation"][1][1] - first[1] == parts[0].robot_ns[1] - first[0]


def test_only_chosen_segments(tmp_path, kit, rng, filled):
    (part,) = kit.Life(rng, kit.Kind()).episode([4])
    part.segment[:] = [1, 2, 2, 1]
    store = filled([part])
    done = export(store, tmp_path / "out.mcap", segments={Segment.AUTO})
    assert (done.episodes, done.steps) == (1, 2)
    steps = messages(tmp_path / "out.mcap")["/left/step"]
    assert [row[0] for row in steps] == part.robot_ns[1:3].tolist()


def test_robots_of_any_schema_share_a_file(tmp_path, kit, rng, filled):
    one = kit.Life(rng, kit.Kind(), producer="a", robot="a")
    two = kit.Life(rng, kit.Kind(fields={"x": ("int8", ())}, schema="t"), producer="b", robot="b")
    done = export(filled([*one.episode([3]), *two.episode([4])]), tmp_path / "out.mcap")
    assert done.steps == 7
    assert {"/a/step", "/b/step"} <= set(messages(tmp_path / "out.mcap"))


def test_a_time_that_mcap_cannot_say_is_refused_not_moved(tmp_path, kit, rng, filled):
    life = kit.Life(rng, kit.Kind())
    life.now = -(10**12)
    store = filled(life.episode([3]))
    with pytest.raises(SpecError, match=r"capture time of episode in episode 'arm-1'; got -\d+ ns"):
        export(store, tmp_path / "out.mcap")
    assert [p.name for p in tmp_path.iterdir() if "out" in p.name] == []


def test_a_target_that_is_there_is_left_alone(tmp_path, recorded):
    (tmp_path / "out.mcap").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        export(recorded[1], tmp_path / "out.mcap")
    assert (tmp_path / "out.mcap").read_text() == "mine"


def test_half_a_file_is_not_a_whole_one(tmp_path, recorded):
    """What ``staged`` guards against: a file without its end cannot be read by index."""
    export(recorded[1], tmp_path / "out.mcap")
    data = (tmp_path / "out.mcap").read_bytes()
    half = io.BytesIO(data[: len(data) // 2])
    with pytest.raises(McapError):
        list(make_reader(half).iter_messages())
