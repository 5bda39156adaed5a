"""Ingest: exactly once, all or nothing, refusals that block nothing."""

import dataclasses

import numpy as np
import pytest

from user_system.codec import fragments as codec
from user_system.core.errors import ConfigError, SpecError, StoreError
from user_system.core.interfaces import Draw
from user_system.core.ports import Ingest, Refused
from user_system.core.types import End, Parcel, Segment
from user_system.replay import images, layout, rewrite, salvage, tables
from user_system.replay.episodes import Episodes
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store
from user_system.replay.tables import U64


def test_a_store_is_an_ingest(store):
    ingest: Ingest = store
    assert ingest.expected("arm", 1) == 0


def test_a_repeated_fragment_is_stored_once(store, data, recorder):
    fragments = recorder().run_episode(8)
    assert store.append(fragments) == []
    assert store.append(fragments[1:]) == []
    assert store.append([*fragments, *fragments]) == []
    assert store.expected("arm", 1) == 2
    assert data.count() == 8
    assert store.stats()["duplicates"] == 5


def test_a_gap_is_ignored_until_it_is_filled(store, data, recorder):
    first, second, third = recorder().run_episode(12)
    assert store.append([first, third]) == []
    assert store.expected("arm", 1) == 1
    assert store.append([second, third]) == []
    assert store.expected("arm", 1) == 3
    assert data.count() == 12
    assert store.stats()["gaps"] == 1


def test_epochs_and_producers_count_apart_and_old_ones_drain_behind_new(store, recorder):
    old, new, other = recorder(epoch=1), recorder(epoch=2), recorder("leg")
    store.append(new.run_episode(4))
    store.append(old.run_episode(8))
    store.append(other.run_episode(4))
    assert store.expected("arm", 1) == 2
    assert store.expected("arm", 2) == 1
    assert store.expected("leg", 1) == 1
    assert store.expected("leg", 2) == 0


def test_a_refused_fragment_says_why_and_lets_the_next_ones_pass(store, data, recorder):
    fragments = recorder().run_episode(12)
    bad = dataclasses.replace(fragments[1], observation={"o": np.full((4, 2), np.nan)})
    (refused,) = store.append([fragments[0], bad, fragments[2]])
    assert (refused.producer, refused.epoch, refused.sequence) == ("arm", 1, 1)
    assert "not finite" in refused.reason
    assert store.expected("arm", 1) == 3
    # Step 3 has lost what followed it, so it is not drawn with step 8's observation instead.
    assert data.count() == 3 + 4


def test_a_refused_fragment_that_comes_again_is_refused_again(store, recorder):
    (fragment,) = recorder().run_episode(4)
    bad = dataclasses.replace(fragment, reward=np.zeros(3, np.float32))
    first = store.append([bad])
    assert store.append([bad]) == first
    assert store.stats()["duplicates"] == 0
    assert store.stats()["refused"] == 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"o": np.zeros((4, 3))}, "observation 'o' differs"),
        ({"o": np.zeros((4, 2), np.float32)}, "observation 'o' differs"),
        ({"flag": np.zeros((4, 1), np.int64)}, "observation 'flag' differs"),
        ({"more": np.zeros((4, 1))}, "observation 'more' differs"),
    ],
)
def test_rows_that_do_not_stack_are_refused(store, recorder, change, match):
    robot = recorder()
    store.append(robot.run_episode(4))
    robot.step(4)
    fragment = robot.flush()
    observation = {**fragment.observation, **change}
    (refused,) = store.append([dataclasses.replace(fragment, observation=observation)])
    assert match in refused.reason
    assert "allowed" in refused.reason


def test_actions_of_another_size_are_refused(store, recorder):
    robot = recorder()
    store.append(robot.run_episode(4))
    robot.step(2)
    fragment = robot.flush()
    other = np.zeros((2, 5), np.float32)
    (refused,) = store.append([dataclasses.replace(fragment, executed=other, proposed=other)])
    assert "actions differ" in refused.reason


def test_the_first_of_a_schema_defines_it_also_within_one_call(store, recorder):
    good, odd = recorder("a"), recorder("b")
    good.step(2)
    odd.step(2)
    odd_fragment = dataclasses.replace(odd.flush(), observation={"x": np.zeros((2, 1))})
    (refused,) = store.append([good.flush(), odd_fragment])
    assert refused.producer == "b"


def test_a_source_that_fits_no_key_is_refused_and_disturbs_nothing(store, recorder):
    odd, good = recorder("x" * 300), recorder()
    odd.step(1)
    (refused,) = store.append([odd.flush(), *good.run_episode(4)])
    assert "not a source" in refused.reason
    assert store.expected("arm", 1) == 1


def test_skip_moves_past_what_could_not_be_decoded(store, recorder):
    fragments = recorder().run_episode(12)
    store.append(fragments[:1])
    store.skip(Refused("arm", 1, 5, "not the one expected"))
    assert store.expected("arm", 1) == 1
    store.skip(Refused("arm", 1, 1, "nobody's"))
    store.skip(Refused("arm", 1, 1, "another's", "c"))
    assert store.expected("arm", 1) == 1, "whoever began it has not lost this one"
    store.skip(Refused("arm", 1, 1, "undecodable", "b"))
    assert store.expected("arm", 1) == 2
    (again,) = store.append(fragments[1:])
    assert again.reason == "undecodable"
    assert store.expected("arm", 1) == 3


def test_a_failure_in_the_middle_stores_nothing_of_the_call(store, data, recorder, monkeypatch):
    fragments = recorder().run_episode(12)
    put, calls = store._put, []

    def fail(*args):
        calls.append(args)
        if len(calls) == 2:
            raise StoreError("the disk failed")
        put(*args)

    monkeypatch.setattr(store, "_put", fail)
    with pytest.raises(StoreError):
        store.append(fragments)
    monkeypatch.undo()
    assert store.expected("arm", 1) == 0
    assert data.count() == 0
    assert store.append(fragments) == []
    assert data.count() == 12


def test_everything_is_there_after_reopening(tmp_path, recorder):
    robot = recorder()
    with Store(tmp_path / "replay").open(create=True) as store:
        store.append(robot.run_episode(8))
    with Store(tmp_path / "replay").open() as store:
        assert store.expected("arm", 1) == 2
        store.append(robot.run_episode(8))
        assert ReplayData(store.env).count() == 16


def test_opening_never_starts_empty_by_itself(tmp_path):
    with pytest.raises(StoreError, match="no store in"):
        Store(tmp_path / "replay").open()
    (tmp_path / "replay").mkdir()
    (tmp_path / "replay" / "data.mdb").write_bytes(b"something")
    with pytest.raises(StoreError, match="holds files but no manifest"):
        Store(tmp_path / "replay").open(create=True)


def test_another_format_is_refused(tmp_path):
    Store(tmp_path / "replay").open(create=True).close()
    manifest = tmp_path / "replay" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 2', '"format": 9'))
    with pytest.raises(StoreError, match="written in a format that this version does not read"):
        Store(tmp_path / "replay").open()


def test_the_map_grows_under_the_writer_and_its_readers(tmp_path, recorder, monkeypatch):
    monkeypatch.setattr("user_system.replay.env.INITIAL_MAP", 1 << 20)
    robot = recorder(cameras={"cam": (64, 64, 3)})
    with Store(tmp_path / "replay").open(create=True) as store:
        data = ReplayData(store.env, seed=3)
        for n in range(1, 11):
            assert store.append(robot.run_episode(20)) == []
            assert data.count() == 20 * n
        assert store.stats()["map_grown"] >= 1
        batch = data.draw(Draw(64))
        assert (batch.next_observation["flag"] == batch.observation["flag"] + 1).all()


def test_labels_are_versioned_and_a_repeat_is_no_news(store, data, recorder):
    robot = recorder()
    store.append(robot.run_episode(4, recorded=float("nan")))
    assert data.count() == 0
    values = np.arange(4, dtype=np.float32)
    for _ in range(3):
        store.label("arm-1-1", "reward", "v1", None, values)
    assert store.stats()["labels"] == 1
    assert data.consume(Draw(4)).reward.tolist() == [0, 1, 2, 3]
    store.label("arm-1-1", "reward", "v2", None, values * 10)
    assert store.stats()["labels"] == 2
    again = ReplayData(store.env)
    assert again.consume(Draw(4)).reward.tolist() == [0, 10, 20, 30]


def test_labels_that_say_nothing_are_refused(store):
    with pytest.raises(SpecError, match="numbers"):
        store.label("e", "reward", "v", None, None)
    with pytest.raises(SpecError, match="no values"):
        store.label("e", "success", "v", True, np.zeros(3, np.float32))
    with pytest.raises(SpecError, match="hide a recorded column"):
        store.label("e", "segment", "v", None, np.zeros(3, np.float32))


def test_images_and_columns_are_stored_apart_and_each_image_once(tmp_path, recorder):
    robot = recorder(cameras={"cam": (128, 128, 3)})
    with Store(tmp_path / "replay").open(create=True) as store:
        store.append(robot.run_episode(99, end=End.TIMEOUT))
        unique = 100 * 128 * 128 * 3
        used = store.stats()["pages"] * 4096
        # 100 images stored once; twice would be 2.0. Records and page tails take the rest.
        assert unique < used < 1.15 * unique


def test_very_many_tiny_images_fit_their_groups(store, data, recorder):
    """The longest fragment there may be, of the smallest images: 65535 steps and one more."""
    robot = recorder(cameras={"cam": (1, 1, 1)})
    robot.step((1 << 16) - 2, end=End.NONE)
    robot.step(1, end=End.TERMINATED)
    fragment = robot.flush()
    other = recorder("leg", cameras={"cam": (1, 1, 1)}).run_episode(4)
    assert store.append([fragment, *other]) == []
    batch = data.consume(Draw(len(fragment)))
    assert (batch.observation["cam"] == fragment.observation["cam"][:-1]).all()
    assert (batch.next_observation["cam"] == fragment.observation["cam"][1:]).all()


def test_every_group_says_where_its_first_image_begins():
    """2 bytes say so; one image more per group and they would not."""
    most = images.per_group((1, 1, 1))
    assert images.first_image(most) < 1 << 16 <= images.first_image(most + 1)


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_images_come_back_bit_for_bit(tmp_path, recorder, codec):
    robot = recorder(cameras={"a": (16, 24, 3), "b": (8, 8, 1)})
    with Store(tmp_path / "replay", codecs={"a": codec}).open(create=True) as store:
        fragments = robot.run_episode(9)
        store.append(fragments)
        batch = ReplayData(store.env).consume(Draw(9))
    for camera in ("a", "b"):
        written = np.concatenate([f.observation[camera] for f in fragments])
        assert (batch.observation[camera] == written[:-1]).all()
        assert (batch.next_observation[camera] == written[1:]).all()


def test_segments_of_a_person_are_found_by_operator(store, data, recorder):
    robot = recorder()
    robot.step(2)
    robot.step(3, segment=Segment.CORRECTION, operator="ann")
    robot.step(1, end=End.TERMINATED)
    store.append([robot.flush()])
    batch = data.consume(Draw(6, columns=["operator", "segment"]))
    names = data.names()
    assert [names[code] for code in batch.extras["operator"]] == ["", "", "ann", "ann", "ann", ""]


def test_an_unknown_codec_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match="allowed: raw, zstd, jpeg"):
        Store(tmp_path / "replay", codecs={"cam": "png"})


@pytest.mark.parametrize("shape", [(0, 4, 3), (70_000, 1, 3)])
def test_an_image_that_is_none_is_refused(store, recorder, shape):
    fragment = recorder().run_episode(8)[0]
    steps = len(fragment)
    observation = {**fragment.observation, "cam": np.zeros((steps, *shape), np.uint8)}
    (refused,) = store.append([dataclasses.replace(fragment, observation=observation)])
    assert "image 'cam'" in refused.reason
    assert store.expected("arm", 1) == 1


def test_schemas_are_kept_beside_the_file_whatever_happened_to_them(tmp_path, recorder):
    path = tmp_path / "replay"
    with Store(path).open(create=True) as store:
        store.append(recorder().run_episode(3))
        assert list(layout.read_schemas(path)) == ["s"]
    (path / layout.SCHEMAS).unlink()
    with Store(path).open():
        assert list(layout.read_schemas(path)) == ["s"]
    (path / layout.SCHEMAS).write_text("{damaged")
    with Store(path).open():
        assert list(layout.read_schemas(path)) == ["s"]


def lived(fragments, boot):
    """Return fragments as another process would have recorded them."""
    header = dataclasses.replace
    return [header(f, header=header(f.header, boot=boot)) for f in fragments]


def arrived(fragments):
    """Return fragments as they come from a host."""
    return [Parcel(fragment, codec.record(fragment)) for fragment in fragments]


def test_another_lifes_fragments_are_no_repeats(store, data, recorder):
    """Two robots of one name, or a spool lost and a clock set back: nothing may pass for stored."""
    mine, theirs = (arrived(lived(recorder().run_episode(12), boot)) for boot in ("one", "two"))
    assert store.append(mine[:2]) == []
    assert not store.strange("arm", 1, "one")
    assert store.strange("arm", 1, "two")
    refused = store.append(theirs)
    assert [r.sequence for r in refused] == [0, 1, 2]
    assert "another process" in refused[0].reason
    assert store.expected("arm", 1) == 2
    assert store.append(mine[2:]) == []
    assert data.count() == 12
    assert store.stats()["duplicates"] == 0


@pytest.mark.parametrize("way", ["opened again", "compacted", "merged", "salvaged"])
def test_whose_a_source_is_is_known_wherever_it_goes(tmp_path, recorder, way):
    path = tmp_path / "replay"
    with Store(path).open(create=True) as store:
        store.append(lived(recorder().run_episode(8), "one"))
    if way == "compacted":
        rewrite.compact(path)
    elif way == "merged":
        rewrite.rewrite([path], tmp_path / "other")
        path = tmp_path / "other"
    elif way == "salvaged":
        salvage.salvage(path, tmp_path / "other")
        path = tmp_path / "other"
    with Store(path).open() as store:
        assert store.strange("arm", 1, "two")
        assert not store.strange("arm", 1, "one")
        assert store.expected("arm", 1) == 2


def test_merging_two_lives_of_one_name_loses_neither(tmp_path, recorder):
    for boot in ("one", "two"):
        with Store(tmp_path / boot).open(create=True) as store:
            store.append(lived(recorder().run_episode(8), boot))
    with pytest.raises(SpecError, match="of two processes under one name"):
        rewrite.rewrite([tmp_path / "one", tmp_path / "two"], tmp_path / "both")


def test_what_was_imported_keeps_who_recorded_it(tmp_path, recorder):
    """An import puts episodes of many processes under one name, and they go along everywhere."""
    robot, path = recorder(), tmp_path / "replay"
    with Store(path).open(create=True) as store:
        for boot in ("one", "two"):
            assert store.append(lived(robot.run_episode(8), boot)) == []
    rewrite.compact(path)
    rewrite.rewrite([path], tmp_path / "other")
    with Store(tmp_path / "other").open() as store:
        boots = {e.header.boot for e in Episodes(store.env)}
    assert boots == {"one", "two"}


def test_a_store_that_never_knew_whose_they_are_takes_them(store, recorder):
    first, second = lived(recorder().run_episode(8), "one")
    store.append([first])
    key = b"arm\0" + U64.pack(1)
    store.env.write(lambda txn: tables.put(txn, store.env, "next", key, U64.pack(1)))
    assert not store.strange("arm", 1, "two")
    assert store.append(arrived(lived([second], "two"))) == []
    assert store.strange("arm", 1, "one")
