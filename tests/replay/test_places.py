"""Nothing is taken for somebody else's: not an image, not a place, not a counter."""

from itertools import pairwise

import numpy as np
import pytest
import xxhash

from user_system.core.errors import DamageError, StoreError
from user_system.core.interfaces import Draw
from user_system.replay import images, mapped, places, rewrite, tables, verify
from user_system.replay.env import Env
from user_system.replay.index import Index, Mark
from user_system.replay.keeper import BLOCK_STEPS
from user_system.replay.salvage import salvage
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store, reader
from user_system.replay.tables import U64

CAMERAS = {"cam": (40, 40, 3)}


@pytest.fixture
def written(tmp_path, recorder):
    """A closed store of 6 fragments with images, and its observations by number."""
    robot = recorder(cameras=CAMERAS)
    fragments = [f for _ in range(3) for f in robot.run_episode(8)]
    with Store(tmp_path / "replay").open(create=True) as store:
        store.append(fragments)
    pictures = {
        number: f.observation["cam"][row]
        for f in fragments
        for row, number in enumerate(f.observation["flag"].tolist())
    }
    return tmp_path / "replay", pictures


def edit(path, work):
    """Change a closed store behind its back."""
    with Env(path, tables.KIND, tables.TABLES).open() as env:
        env.write(lambda txn: work(txn, env))


def serve(path, pictures):
    """Return the numbers of the steps that are served, each picture compared."""
    with reader(path).open() as env:
        data = ReplayData(env, seed=1)
        for _ in range(20):
            batch = data.draw(Draw(64))
            for when in (batch.observation, batch.next_observation):
                for number, picture in zip(when["flag"].tolist(), when["cam"], strict=True):
                    assert (picture == pictures[number]).all(), number
        return set(data.consume(Draw(data.count())).observation["flag"].tolist())


def swap(txn, env, table, a, b):
    """Let two keys exchange their values."""
    one, two = (bytes(txn.get(key, db=env.table(table))) for key in (a, b))
    txn.put(a, two, db=env.table(table))
    txn.put(b, one, db=env.table(table))


def test_images_under_the_key_of_another_fragment_are_damage(written):
    path, pictures = written

    def work(txn, env):
        swap(txn, env, "images", images.key(0, 0, 0), images.key(2, 0, 0))
        for offset in (0, 2):
            txn.delete(U64.pack(offset), db=env.table("places"))

    edit(path, work)
    served = serve(path, pictures)
    assert 10 <= len(served) < 24
    damaged = verify.verify(path).damaged
    assert sum("images are missing" in line for line in damaged) == 2


def test_places_of_another_fragment_are_not_believed(written):
    path, pictures = written
    edit(path, lambda txn, env: swap(txn, env, "places", U64.pack(0), U64.pack(2)))
    assert len(serve(path, pictures)) == 24, "the images themselves are sound"


def value_of(place):
    table = np.empty(len(place.starts), images.ENTRY)
    table["length"], table["checksum"] = place.lengths, place.checksums
    first = int(place.starts[0]) - place.position
    head = bytes(30) + first.to_bytes(2, "little")
    return images.Value(place.camera, place.group, place.codec, head, table)


def test_places_that_point_elsewhere_cost_a_look_and_nothing_else(written):
    path, pictures = written

    def work(txn, env):
        for offset, value in list(tables.entries(txn, env, "places", 0)):
            identity = int.from_bytes(bytes(value[8:16]), "little")
            moved = [(value_of(place), place.position + 4096) for place in places.decode(value)]
            data = places.encode(identity, moved)
            txn.put(U64.pack(offset), data, db=env.table("places"))

    edit(path, work)
    assert len(serve(path, pictures)) == 24


def test_a_counter_that_damage_changed_is_noticed_before_anything_is_acknowledged(written):
    path, _ = written

    def work(txn, env):
        value = bytearray(txn.get(b"arm\0" + U64.pack(1), db=env.table("next")))
        value[7] ^= 64
        txn.put(b"arm\0" + U64.pack(1), bytes(value), db=env.table("next"))

    edit(path, work)
    with pytest.raises(DamageError, match="does not belong"):
        Store(path).open()
    assert "next" in verify.verify(path).damaged[0]


def test_a_key_that_damage_changed_is_noticed_before_anything_is_acknowledged(written):
    """Without its counter a log would begin again at 0, and a producer at sequence 0."""
    path, _ = written
    for table, key in (("meta", b"offset"), ("next", b"arm\0" + U64.pack(1))):
        sound = (path / "data.mdb").read_bytes()

        def work(txn, env, table=table, key=key):
            value = bytes(txn.get(key, db=env.table(table)))
            txn.delete(key, db=env.table(table))
            txn.put(bytes([key[0] ^ 1]) + key[1:], value, db=env.table(table))

        edit(path, work)
        with pytest.raises(DamageError, match="does not belong"):
            Store(path).open()
        (path / "data.mdb").write_bytes(sound)


def test_a_position_is_known_before_it_is_written_and_stays(written):
    path, _ = written
    with reader(path).open() as env, env.read() as txn:
        for offset, value in tables.entries(txn, env, "places", 0):
            for place in places.decode(value):
                stored = txn.get(
                    images.key(offset, place.camera, place.group), db=env.table("images")
                )
                group = images.Group.parse(stored)
                assert place.starts.tolist() == (mapped.position(stored) + group.starts).tolist()
                first = env.file.read(int(place.starts[0]), int(place.lengths[0]))
                assert bytes(first) == bytes(group.bytes(0))
                assert int(place.starts[0]) % 64 == 0


def test_blocks_say_the_same_as_the_log(tmp_path, recorder, monkeypatch):
    """An index from blocks, one from the log, and any mark in between: the same rows."""
    monkeypatch.setattr("user_system.replay.keeper.BLOCK_STEPS", 16)
    robots = [recorder(name, extras=name == "b") for name in ("a", "b", "c")]
    path = tmp_path / "replay"
    with Store(path).open(create=True) as store:
        for _ in range(6):
            for robot in robots:
                store.append(robot.run_episode(7, flush_every=3))
        store.tend()
        with store.env.read() as txn:
            blocked = tables.blocked(txn, store.env)
            total = tables.peek(txn, store.env, "offset")
        assert total - 16 < blocked <= total

        def look(mark, *, blocks):
            index = Index(store.env)
            if not blocks:
                monkeypatch.setattr(tables, "blocks", lambda *_: iter(()))
            index.refresh(Mark(mark, 0))
            monkeypatch.undo()
            (rows,) = index.rows.values() if index.rows else (None,)
            if rows is None:
                return None
            every = np.arange(len(rows))
            names = ("obs", "next_obs", "next_step", "reward", "segment", "executed", "id", "k")
            return [list(rows.names), *(rows.of(name, every).tolist() for name in names)]

        for mark in range(total + 1):
            assert look(mark, blocks=True) == look(mark, blocks=False), mark


def test_a_damaged_block_is_read_from_the_log(tmp_path, recorder, caplog):
    robot = recorder()
    path = tmp_path / "replay"
    with Store(path).open(create=True) as store:
        fragments = robot.run_episode(BLOCK_STEPS + 40, flush_every=32)
        store.append(fragments)
        store.tend()
        assert store.env.stats()["pages"] > 0
    with reader(path).open() as env, env.read() as txn:
        (place,) = tables.blocks(txn, env, 0)
    with (path / "data.mdb").open("r+b") as file:
        file.seek(place.position + place.length // 2)
        file.write(b"damage")
    with reader(path).open() as env:
        data = ReplayData(env)
        flags = data.consume(Draw(data.count())).observation["flag"]
    assert (np.sort(flags) == np.arange(1, BLOCK_STEPS + 41)).all()
    assert all(b - a == 1 for a, b in pairwise(np.sort(flags).tolist()))
    assert "block 0 of" in caplog.text
    assert not verify.verify(path).ok


def test_who_appends_faster_than_blocks_are_made_helps_and_a_closed_store_has_them(
    tmp_path, recorder, monkeypatch
):
    """A reader pays for each step that is in no block; an import must not leave a million."""
    monkeypatch.setattr("user_system.replay.keeper.BLOCK_STEPS", 32)
    monkeypatch.setattr("user_system.replay.keeper._MOST_BEHIND", 64)
    monkeypatch.setattr("user_system.replay.keeper.Keeper._run", lambda self: None)
    robot = recorder()
    with Store(tmp_path / "replay").open(create=True) as store:
        for _ in range(20):
            store.append(robot.run_episode(16))
            with store.env.read() as txn:
                behind = tables.peek(txn, store.env, "offset") - tables.blocked(txn, store.env)
            assert 4 * behind < 64 + 16
    with reader(tmp_path / "replay").open() as env, env.read() as txn:
        assert 4 * (tables.peek(txn, env, "offset") - tables.blocked(txn, env)) < 32


def test_blocks_that_cannot_be_made_are_no_concern_of_who_appends(
    tmp_path, recorder, monkeypatch, caplog
):
    """What was appended is on disk: an error would have it sent again."""
    monkeypatch.setattr("user_system.replay.keeper.BLOCK_STEPS", 8)
    monkeypatch.setattr("user_system.replay.keeper._MOST_BEHIND", 8)
    monkeypatch.setattr("user_system.replay.keeper.Keeper._run", lambda self: None)

    def full(*_):
        raise StoreError("the disk is full")

    monkeypatch.setattr(tables, "put_block", full)
    with Store(tmp_path / "replay").open(create=True) as store:
        assert store.append(recorder().run_episode(40)) == []
        assert store.stats()["appended_fragments"] == 10
    assert "could not be put into blocks" in caplog.text


def test_where_a_fragments_images_lie_is_read_once_and_not_from_a_snapshot_that_is_over(
    written, monkeypatch
):
    path, _ = written
    read = []
    decode = places.decode
    monkeypatch.setattr(
        places, "decode", lambda data, who=None: read.append(data) or decode(data, who)
    )
    with reader(path).open() as env:
        data = ReplayData(env, seed=1)
        for _ in range(data.count()):
            data.consume(Draw(1))
        assert 0 < len(read) <= 6, "once for each fragment"
        with env.read() as txn:
            mapped_at = np.frombuffer(env.whole(txn), np.uint8).__array_interface__["data"][0]
            size = env.size()
        for found in read:
            address = np.frombuffer(found, np.uint8).__array_interface__["data"][0]
            assert not mapped_at <= address < mapped_at + size


@pytest.mark.parametrize(
    ("shape", "codec", "grain"),
    [
        ((128, 128, 3), "raw", 4096),
        ((64, 64, 1), "raw", 4096),
        ((224, 224, 3), "raw", 1024),
        ((84, 84, 3), "raw", 64),
        ((128, 128, 3), "jpeg", 64),
    ],
)
def test_where_images_begin_in_the_file(tmp_path, recorder, shape, codec, grain):
    """At pages where they are whole ones, so that a batch is one ``np.take``."""
    robot = recorder(cameras={"cam": shape})
    with Store(tmp_path / "replay", codecs={"cam": codec}).open(create=True) as store:
        store.append(list(robot.run_episode(6)))
    with reader(tmp_path / "replay").open() as env, env.read() as txn:
        for offset, value in tables.entries(txn, env, "places", 0):
            for place in places.decode(value):
                found = images.parse(group_at(txn, env, offset, place), shape)
                assert (place.starts == place.position + found.starts).all()
                assert place.size == len(found.data)
                assert place.starts[0] % grain == 0
                wasted = place.size - found.lengths.sum()
                assert wasted <= max(4096, 32 + 12 * len(found) + grain)


@pytest.mark.parametrize("copy", ["rewrite", "salvage"])
def test_copies_of_what_an_earlier_version_wrote_are_found_where_they_lie(
    tmp_path, recorder, monkeypatch, copy
):
    """Otherwise each image is asked of LMDB, which reads a megabyte for it, in every reader."""
    monkeypatch.setattr(images, "grain", lambda lengths: images.LINE)
    with Store(tmp_path / "old").open(create=True) as store:
        store.append(list(recorder(cameras={"cam": (64, 64, 3)}).run_episode(6)))
    monkeypatch.undo()
    if copy == "rewrite":
        rewrite.rewrite([tmp_path / "old"], tmp_path / "new")
    else:
        salvage(tmp_path / "old", tmp_path / "new")
    with reader(tmp_path / "new").open() as env, env.read() as txn:
        for offset, value in tables.entries(txn, env, "places", 0):
            for place in places.decode(value):
                found = images.parse(group_at(txn, env, offset, place), (64, 64, 3))
                assert (place.starts == place.position + found.starts).all()
                assert place.size == len(found.data)
                assert copy == "salvage" or not place.starts[0] % mapped.PAGE


def group_at(txn, env, offset, place):
    return txn.get(images.key(offset, place.camera, place.group), db=env.table("images"))


def test_places_that_were_written_before_images_began_at_pages(tmp_path, recorder, monkeypatch):
    monkeypatch.setattr(images, "grain", lambda lengths: images.LINE)
    robot = recorder(cameras={"cam": (64, 64, 3)})
    fragments = list(robot.run_episode(6))
    with Store(tmp_path / "replay").open(create=True) as store:
        store.append(fragments)
        store.env.write(lambda txn: _without_leads(txn, store.env))
    monkeypatch.undo()
    pictures = {
        number: f.observation["cam"][row]
        for f in fragments
        for row, number in enumerate(f.observation["flag"].tolist())
    }
    assert len(serve(tmp_path / "replay", pictures)) == 6
    with reader(tmp_path / "replay").open() as env, env.read() as txn:
        for offset, value in tables.entries(txn, env, "places", 0):
            for place in places.decode(value):
                found = images.parse(group_at(txn, env, offset, place), (64, 64, 3))
                assert (place.starts == place.position + found.starts).all()


def _without_leads(txn, env):
    """Write all places as they were, with a zero for where in its value a first image begins."""
    stored = [(n, bytes(value)) for n, value in tables.entries(txn, env, "places", 0)]
    for offset, value in stored:
        body, at = bytearray(value[8:]), 8
        while at < len(body):
            count = int.from_bytes(body[at + 6 : at + 8], "little")
            body[at + 16 : at + 20] = bytes(4)
            at += 20 + 12 * count
        value = places._SUM.pack(xxhash.xxh3_64_intdigest(body)) + body
        txn.put(U64.pack(offset), value, db=env.table("places"))


def test_the_head_of_a_full_group_says_where_its_first_image_begins_whatever_the_size():
    for size in range(1, 70_000):
        count = images.per_group((1, size, 1))
        grain = images.grain(np.array([size], np.uint32))
        assert images.first_image(count, grain) < 1 << 16, size
