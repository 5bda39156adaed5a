"""Datasets of others: what becomes of them, and what is refused before anything is stored."""

import contextlib
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from user_system.core.errors import ConfigError, DamageError, SpecError, StoreError, UserSystemError
from user_system.core.interfaces import Draw
from user_system.core.types import End, Purpose, Segment
from user_system.replay.episodes import Episodes
from user_system.replay.exchange import lerobot_export, lerobot_import
from user_system.replay.sampler import ReplayData
from user_system.replay.store import reader


def into(store, source, *, create=True, **options):
    return lerobot_import.import_dataset(
        store, source, lerobot_import.Options(**options), create=create
    )


@pytest.fixture
def load(tmp_path):
    """Import a dataset into a new store; return what was done, and the episodes."""

    def load(dataset, **options):
        source = dataset.write(tmp_path / "theirs")
        done = into(tmp_path / "store", source, **options)
        with reader(tmp_path / "store").open() as env:
            return done, list(Episodes(env, check_images=True))

    return load


def test_steps_of_others_are_demonstrations(load, foreign):
    theirs = foreign()
    done, episodes = load(theirs)
    assert (done.ours, done.episodes, done.steps, done.ignored) == (False, 3, 71, {})
    for i, episode in enumerate(episodes):
        header, rows = (
            episode.header,
            slice(*(theirs.rows[i][f"dataset_{e}_index"] for e in ("from", "to"))),
        )
        assert (header.robot, header.task) == ("so101", f"task {i % 2}")
        assert (header.run, header.purpose) == ("import-theirs", Purpose.COLLECT)
        assert set(episode.columns["segment"]) == {Segment.DEMO}
        assert np.isnan(episode.columns["proposed"]).all()
        assert [episode.names[j] for j in episode.columns["policy"]] == [""] * len(episode)
        for name, key in (("executed", "action"), ("reward", "next.reward")):
            np.testing.assert_array_equal(episode.columns[name], theirs.arrays[key][rows])
        for name in ("state", "effort"):
            values = episode.observation[name]
            np.testing.assert_array_equal(values[:-1], theirs.arrays[f"observation.{name}"][rows])
            assert values.dtype == theirs.arrays[f"observation.{name}"].dtype
        stamps = np.arange(rows.start, rows.stop) * 50_000_000
        np.testing.assert_array_equal(episode.robot_ns[:-1], stamps)


def test_fragments_are_short_and_numbered_without_gaps(load, foreign):
    done, episodes = load(foreign())
    pieces = [piece for episode in episodes for piece in episode.pieces]
    assert [piece.steps for piece in pieces] == [7, 4, 50, 10]
    assert [piece.header.sequence for piece in pieces] == [0, 1, 2, 3]
    assert {(p.header.producer, p.header.epoch) for p in pieces} == {("import", done.epoch)}


def test_done_ends_an_episode_and_nothing_is_bootstrapped_from_what_was_not_seen(
    tmp_path, load, foreign
):
    _, episodes = load(foreign())
    for episode in episodes:
        assert episode.complete
        assert episode.columns["end"][-1] == End.TERMINATED
        np.testing.assert_array_equal(
            episode.observation["state"][-1], episode.observation["state"][-2]
        )
    with reader(tmp_path / "store").open() as env:
        data = ReplayData(env, seed=1)
        assert data.count("demos") == 71
        batch = data.consume(Draw(71))
    assert (batch.discount[batch.end == End.TERMINATED] == 0).all()
    assert (batch.end == End.TERMINATED).sum() == 3


@pytest.mark.parametrize("why", ["absent", "false", "truncated"])
def test_without_done_the_last_step_is_stored_but_not_drawn(tmp_path, load, foreign, why):
    theirs = foreign()
    if why == "absent":
        theirs.drop("next.done")
    elif why == "false":
        theirs.arrays["next.done"][:] = False
    else:
        theirs.arrays["next.truncated"] = theirs.arrays["next.done"].copy()
        theirs.features["next.truncated"] = theirs.features["next.done"]
    _, episodes = load(theirs)
    assert [len(e) for e in episodes] == [7, 4, 60]
    assert not any(e.complete for e in episodes)
    with reader(tmp_path / "store").open() as env:
        assert ReplayData(env).count() == 71 - 3


@pytest.mark.parametrize(
    ("reward", "drawn", "last", "success"),
    [("unknown", 0, np.nan, None), ("zero", 68, 0.0, None), ("sparse", 71, 1.0, True)],
)
def test_a_missing_reward_is_what_is_said(tmp_path, load, foreign, reward, drawn, last, success):
    _, episodes = load(foreign().drop("next.reward", "next.done"), reward=reward)
    with reader(tmp_path / "store").open() as env:
        assert ReplayData(env).count() == drawn
    for episode in episodes:
        np.testing.assert_equal(episode.columns["reward"][-1], np.float32(last))
        assert episode.success is success
        if reward != "unknown":
            assert (episode.columns["reward"][:-1] == 0).all()


def test_success_and_extras_are_kept_and_what_is_not_understood_is_named(load, foreign):
    theirs = foreign()
    total = sum(theirs.lengths)
    theirs.arrays["next.success"] = np.arange(total) == 6
    theirs.features["next.success"] = {"dtype": "bool", "shape": [1], "names": None}
    theirs.arrays["complementary_info.penalty"] = np.arange(total)
    theirs.features["complementary_info.penalty"] = {"dtype": "int64", "shape": [1]}
    theirs.arrays["note"] = np.array(["x"] * total)
    theirs.features["note"] = {"dtype": "string", "shape": [1]}
    theirs.arrays["weight"] = np.ones(total)
    theirs.features["weight"] = {"dtype": "float64", "shape": [1]}
    done, episodes = load(theirs)
    assert [e.success for e in episodes] == [True, False, False]
    np.testing.assert_array_equal(episodes[1].extras["penalty"], np.arange(7, 11))
    assert done.ignored == {
        "note": "of type string",
        "weight": "no observation, action, reward or extra",
    }


@pytest.mark.parametrize("names", [("height", "width", "channel"), ("channels", "height", "width")])
def test_images_come_back_pixel_for_pixel(tmp_path, load, foreign, kit, rng, names):
    theirs = foreign()
    total = sum(theirs.lengths)
    front = rng.integers(0, 256, (total, 5, 7, 3), np.uint8)
    theirs.add_images("observation.images.front", front, names)
    grey = rng.integers(0, 256, (total, 4, 6), np.uint8)
    theirs.add_images("observation.grey", grey[..., None])
    theirs.images["observation.grey"] = grey
    load(theirs)
    first = 0
    for episode, seen in kit.episodes_of(tmp_path / "store"):
        rows = slice(first, first + len(episode))
        assert episode.cameras == {"front": (5, 7, 3), "grey": (4, 6, 1)}
        np.testing.assert_array_equal(seen["front"][:-1], front[rows])
        np.testing.assert_array_equal(seen["grey"][:-1, ..., 0], grey[rows])
        first = rows.stop
    assert first == total


def test_video_comes_in_with_the_right_frame_at_the_right_step(tmp_path, load, foreign, kit):
    theirs = foreign()
    images = np.stack([kit.smooth((32, 48, 3), 5 * n) for n in range(sum(theirs.lengths))])
    theirs.add_video("observation.images.front", images)
    load(theirs)
    first = 0
    for episode, seen in kit.episodes_of(tmp_path / "store"):
        for k in range(len(episode)):
            frame = seen["front"][k].astype(np.float64)
            errors = [np.abs(frame - image).mean() for image in images]
            assert int(np.argmin(errors)) == first + k
        first += len(episode)
    assert first == len(images)


def test_a_depth_video_is_left_out_by_name(load, foreign, kit):
    theirs = foreign()
    images = np.stack([kit.smooth((32, 48, 3), n) for n in range(sum(theirs.lengths))])
    theirs.add_video("observation.images.depth", images)
    theirs.features["observation.images.depth"]["info"]["is_depth_map"] = True
    done, episodes = load(theirs)
    assert list(done.ignored) == ["observation.images.depth"]
    assert episodes[0].cameras == {}


def test_names_may_be_given(load, foreign):
    _, episodes = load(foreign(), robot="left", task="fold", run="lab")
    header = episodes[0].header
    assert (header.robot, header.task, header.run) == ("left", "fold", "lab")


def test_a_robot_must_be_named_by_somebody(tmp_path, foreign):
    theirs = foreign()
    theirs.info["robot_type"] = None
    source = theirs.write(tmp_path / "theirs")
    with pytest.raises(ConfigError, match=r"names no robot. Say --robot"):
        into(tmp_path / "store", source)
    assert into(tmp_path / "store", source, robot="left").steps == 71


def test_repeating_an_import_stores_nothing_twice(tmp_path, load, foreign):
    done, _ = load(foreign())
    again = into(tmp_path / "store", tmp_path / "theirs", create=False)
    assert (again.steps, again.fragments, again.present) == (0, 0, done.fragments)
    with reader(tmp_path / "store").open() as env:
        assert ReplayData(env).count() == 71


def test_a_moved_copy_is_the_same_dataset(tmp_path, load, foreign):
    load(foreign())
    (tmp_path / "theirs").rename(tmp_path / "elsewhere")
    assert into(tmp_path / "store", tmp_path / "elsewhere").steps == 0


def test_other_names_do_not_double_it(tmp_path, load, foreign):
    load(foreign())
    with pytest.raises(ConfigError, match=r"has episode 'lerobot-.*-0' of .* already"):
        into(tmp_path / "store", tmp_path / "theirs", robot="twin")


def test_without_create_there_must_be_a_store(tmp_path, foreign):
    source = foreign().write(tmp_path / "theirs")
    with pytest.raises(StoreError, match="no store"):
        into(tmp_path / "store", source, create=False)


def test_rows_that_do_not_stack_with_those_of_the_store_are_refused(tmp_path, load, foreign, rng):
    load(foreign())
    other = foreign(lengths=(3,), files=((0,),))
    other.arrays["observation.state"] = rng.normal(size=(3, 5)).astype(np.float32)
    other.features["observation.state"]["shape"] = [5]
    # Another form is another schema, so it may stand beside the first.
    assert into(tmp_path / "store", other.write(tmp_path / "other")).steps == 3


# --- refused --------------------------------------------------------------------------------------


def spoil_info(**changes):
    def spoil(theirs):
        theirs.info.update(changes)

    return spoil


def spoil_feature(key, **changes):
    def spoil(theirs):
        theirs.features[key] = theirs.features[key] | changes

    return spoil


def spoil_array(key, at, value):
    def spoil(theirs):
        theirs.arrays[key] = theirs.arrays[key].copy()
        theirs.arrays[key][at] = value

    return spoil


def spoil_row(i, **changes):
    def spoil(theirs):
        theirs.rows[i].update({key.replace("__", "/"): value for key, value in changes.items()})

    return spoil


def without(*keys):
    return lambda theirs: theirs.drop(*keys)


def swapped(theirs):
    for values in theirs.arrays.values():
        values[[2, 3]] = values[[3, 2]]


def other_shape(theirs):
    theirs.arrays["observation.state"] = theirs.arrays["observation.state"][:, :2]


def shorter(theirs):
    theirs.files = ((0, 1),)


HOSTILE = {
    "another version": (
        spoil_info(codebase_version="v2.1"),
        "another version; got v2.1; allow",
    ),
    "a newer version": (spoil_info(codebase_version="v3.1"), "got v3.1; allowed: v3.0"),
    "no version": (spoil_info(codebase_version=None), "got None; allowed|another version"),
    "no rate": (spoil_info(fps=0), "fps; got 0; allowed: 1"),
    "a text as rate": (spoil_info(fps="20"), "fps; got 20"),
    "more frames than there are": (
        spoil_info(total_frames=72),
        "frames listed; got 71; allow",
    ),
    "fewer episodes": (spoil_info(total_episodes=2), "episodes listed; got 3; allowed: 2"),
    "a path out": (spoil_info(data_path="../theirs.parquet"), "leads out of the dataset"),
    "an absolute path": (spoil_info(data_path="/etc/passwd"), "leads out of the dataset"),
    "a path that runs code": (spoil_info(data_path="{chunk_index.__class__}"), "data_path; got"),
    "a path of a gigabyte": (spoil_info(data_path="{chunk_index:0999999999d}"), "data_path; got"),
    "no path": (spoil_info(data_path=None), r"info.json: data_path"),
    "no action": (without("action"), r"lacks columns.*\['action'\]"),
    "an action as a matrix": (spoil_feature("action", shape=[2, 1]), "action; got .2, 1.; allowed"),
    "no index": (without("index"), r"lacks columns.*\['index'\]"),
    "a wrong shape": (other_shape, "another shape"),
    "a shape that is none": (spoil_feature("action", shape=[-1]), "feature 'action'; got"),
    "a shape beyond memory": (
        spoil_feature("observation.state", shape=[1 << 30, 9]),
        "feature 'obs",
    ),
    "a wrong dtype": (spoil_feature("observation.state", dtype="int8"), "wrong dtype"),
    "NaN action": (spoil_array("action", (8, 1), np.nan), "step 0: .*executed is not finite"),
    "infinite observation": (spoil_array("observation.effort", 70, np.inf), "effort is not finite"),
    "infinite reward": (spoil_array("next.reward", 3, np.inf), "reward is infinite"),
    "done in the middle": (
        spoil_array("next.done", 2, True),
        "next.done of episode 0; got tr",
    ),
    "rows in another order": (swapped, "frame_index of frame 2 of episode 0; got 3; allowed: 2"),
    "a doubled row": (
        spoil_array("index", 9, 8),
        "index of frame 2 of episode 1; got 8; all",
    ),
    "a foreign row": (spoil_array("episode_index", 9, 2), "episode_index of frame 2 of episode 1"),
    "another clock": (spoil_array("timestamp", 5, 9.0), "timestamps of episode 0"),
    "a gap in the list": (spoil_row(1, dataset_from_index=8), "episode 1 does not follow"),
    "another length": (spoil_row(1, length=3), "episode 1 does not follow"),
    "an episode of nothing": (
        spoil_row(1, length=0, dataset_to_index=7),
        "episode 1 does not foll",
    ),
    "a file that is not there": (spoil_row(2, data__file_index=9), "is missing from the dataset"),
    "rows in the wrong file": (spoil_row(1, data__file_index=1), "rows of .*file-00[01]"),
    "no tasks": (spoil_row(0, tasks=[]), None),
    "a missing file": (shorter, "is missing from the dataset"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_not_what_it_says_is_refused_before_anything_is_stored(tmp_path, foreign, what):
    spoil, match = HOSTILE[what]
    theirs = foreign()
    spoil(theirs)
    source = theirs.write(tmp_path / "theirs")
    if match is None:
        assert into(tmp_path / "store", source).steps == 71
        return
    with pytest.raises(SpecError, match=match):
        into(tmp_path / "store", source)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize("file", ["data/chunk-000/file-001", "meta/episodes/chunk-000/file-000"])
def test_a_file_without_footer_is_refused(tmp_path, foreign, file):
    source = foreign().write(tmp_path / "theirs")
    path = source / f"{file}.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SpecError, match=r"not a whole Parquet file.*Was its writer closed"):
        into(tmp_path / "store", source)
    assert not (tmp_path / "store").exists()


def test_a_damaged_page_in_the_last_file_is_refused_before_anything_is_stored(tmp_path, foreign):
    source = foreign(lengths=(5, 900), files=((0,), (1,))).write(tmp_path / "theirs")
    path = source / "data/chunk-000/file-001.parquet"
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)
    path.write_bytes(bytes(data))
    with pytest.raises(SpecError):
        into(tmp_path / "store", source)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"codebase_version": "v3.0"}'])
def test_an_info_that_is_none_is_refused(tmp_path, foreign, text):
    source = foreign().write(tmp_path / "theirs")
    (source / "meta" / "info.json").write_text(text)
    with pytest.raises(SpecError):
        into(tmp_path / "store", source)
    assert not (tmp_path / "store").exists()


def test_what_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(SpecError, match="is this a LeRobotDataset v3"):
        into(tmp_path / "store", tmp_path / "nothing")


def test_a_link_out_of_the_dataset_is_refused(tmp_path, foreign):
    source = foreign().write(tmp_path / "theirs")
    path = source / "data/chunk-000/file-000.parquet"
    path.rename(tmp_path / "outside.parquet")
    path.symlink_to(tmp_path / "outside.parquet")
    with pytest.raises(SpecError, match=r"leads out of the dataset.*cp -rL"):
        into(tmp_path / "store", source)


def test_a_camera_cannot_name_a_way_out(tmp_path, foreign, kit):
    theirs = foreign()
    images = np.stack([kit.smooth((32, 48, 3), n) for n in range(sum(theirs.lengths))])
    theirs.add_video("../../outside", images)
    with pytest.raises(SpecError, match="leads out of the dataset"):
        into(tmp_path / "store", theirs.write(tmp_path / "a" / "theirs"))


def test_images_of_another_size_or_kind_are_refused(tmp_path, foreign, rng):
    theirs = foreign()
    images = rng.integers(0, 256, (sum(theirs.lengths), 5, 7, 3), np.uint8)
    theirs.add_images("observation.images.front", images)
    theirs.features["observation.images.front"]["shape"] = [5, 6, 3]
    with pytest.raises(SpecError, match=r"observation.images.front of frame 0 of episode 0 is an"):
        into(tmp_path / "store", theirs.write(tmp_path / "theirs"))
    assert not (tmp_path / "store").exists()


def test_images_outside_the_file_are_refused(tmp_path, foreign, rng):
    theirs = foreign(lengths=(3,), files=((0,),))
    theirs.add_images("observation.images.front", rng.integers(0, 256, (3, 5, 7, 3), np.uint8))
    source = theirs.write(tmp_path / "theirs")
    path = source / "data/chunk-000/file-000.parquet"
    table, key = pq.read_table(path), "observation.images.front"
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = pa.array([{"bytes": None, "path": "/etc/passwd"}] * 3, kind)
    pq.write_table(table.set_column(table.column_names.index(key), key, cells), path)
    with pytest.raises(SpecError, match="images that are not in the file"):
        into(tmp_path / "store", source)


@pytest.mark.parametrize("how", ["short", "rate", "size", "cut"])
def test_videos_that_do_not_fit_are_refused(tmp_path, foreign, kit, how):
    theirs = foreign()
    images = np.stack([kit.smooth((32, 48, 3), n) for n in range(sum(theirs.lengths))])
    shown = images[:-1] if how == "short" else images
    theirs.add_video("observation.images.front", shown, fps=30 if how == "rate" else None)
    if how == "size":
        theirs.features["observation.images.front"]["shape"] = [64, 48, 3]
    source = theirs.write(tmp_path / "theirs")
    if how == "cut":
        path = source / "videos/observation.images.front/chunk-000/file-000.mp4"
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(SpecError, match=r"has no frame at|another size|not a readable video"):
        into(tmp_path / "store", source)
    assert not (tmp_path / "store").exists()


def test_two_columns_of_one_name_are_refused(tmp_path, foreign, rng):
    theirs = foreign()
    images = rng.integers(0, 256, (sum(theirs.lengths), 5, 7, 3), np.uint8)
    theirs.add_images("observation.images.state", images)
    with pytest.raises(SpecError, match=r"one observation of ours; got \['state'\]"):
        into(tmp_path / "store", theirs.write(tmp_path / "theirs"))


# --- our own, changed -----------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path, kit, rng, filled):
    kind = kit.Kind(streams={"force": ("float32", (2,))}, cameras={"c": (4, 4, 3)})
    life = kit.Life(rng, kind)
    store = filled([*life.episode([5, 3], streams={"force": 4}), *life.episode([2])])
    with reader(store).open() as env:
        lerobot_export.export(Episodes(env), tmp_path / "own", lerobot_export.Options())
    return tmp_path / "own"


def files_of(root):
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


def test_a_flipped_bit_anywhere_is_found(tmp_path, own, rng):
    hashed = [name for name in files_of(own) if not name.endswith(".json")]
    assert len(hashed) == 6
    for name in hashed:
        sound = (own / name).read_bytes()
        at = int(rng.integers(len(sound)))
        (own / name).write_bytes(sound[:at] + bytes([sound[at] ^ 16]) + sound[at + 1 :])
        with pytest.raises((DamageError, SpecError)):
            into(tmp_path / "back", own)
        (own / name).write_bytes(sound)
    assert not (tmp_path / "back").exists()
    assert into(tmp_path / "back", own).steps == 10


def test_a_missing_file_is_found(tmp_path, own):
    for name in files_of(own):
        if name.endswith("stats.json"):
            continue
        (own / name).rename(tmp_path / "aside")
        with pytest.raises(SpecError):
            into(tmp_path / "back", own)
        os.rename(tmp_path / "aside", own / name)
    assert not (tmp_path / "back").exists()


def test_statistics_may_be_made_anew(tmp_path, own):
    (own / "meta" / "stats.json").write_text("{}")
    assert into(tmp_path / "back", own).steps == 10


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2}, {"format": None}, {"features": None}, {"features": [1]}, {"streams": None},
        {"streams": [{}]}, {"files": None}, {"files": {"../../x": "0"}}, {"files": {}},
        {"features": []},
    ],
    ids=str,
)  # fmt: skip
def test_our_block_is_not_believed_either(tmp_path, own, change):
    path = own / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["user_system"].update(change)
    path.write_text(json.dumps(info))
    with pytest.raises(UserSystemError, match=r"got|not what was exported"):
        into(tmp_path / "back", own)
    assert not (tmp_path / "back").exists()


def test_our_block_with_any_value_spoiled_is_refused_or_harmless(tmp_path, own):
    """Every leaf of it in turn: an error of ours, or rows that pass every check; never a crash."""
    path = own / "meta" / "info.json"
    text = path.read_text()
    refused = 0
    for i, leaf in enumerate(leaves(json.loads(text))):
        info = json.loads(text)
        put(info, leaf, (None, -1, "x", [], {})[i % 5])
        path.write_text(json.dumps(info))
        with contextlib.suppress(UserSystemError):
            into(tmp_path / f"back-{i}", own)
            continue
        refused += 1
        assert not (tmp_path / f"back-{i}").exists()
    assert refused > 50


def leaves(value, at=()):
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            if len(at) < 2 or at[1] in ("features", "streams", "files"):
                yield from leaves(inner, (*at, key))
    else:
        yield at


def put(value, at, new):
    for key in at[:-1]:
        value = value[key]
    value[at[-1]] = new


def test_without_our_block_it_is_somebody_elses(tmp_path, own):
    """Tools of others drop blocks that they do not know."""
    path = own / "meta" / "info.json"
    info = json.loads(path.read_text())
    del info["user_system"]
    path.write_text(json.dumps(info))
    done = into(tmp_path / "back", own)
    assert (done.ours, done.steps) == (False, 10)
    assert all(name.startswith("user_system.") for name in done.ignored)
    with reader(tmp_path / "back").open() as env:
        assert {s for e in Episodes(env) for s in e.columns["segment"]} == {Segment.DEMO}


def test_rewards_of_ours_are_not_overruled(tmp_path, own):
    with pytest.raises(ConfigError, match="has its rewards"):
        into(tmp_path / "back", own, reward="zero")
