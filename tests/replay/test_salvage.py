"""What is whole in a damaged store comes out of it, and nothing else does."""

import random

import numpy as np
import pytest

from user_system.core.errors import StoreError
from user_system.core.interfaces import Draw
from user_system.replay import labels
from user_system.replay.books import Progress
from user_system.replay.entries import is_source_key, source_key
from user_system.replay.salvage import salvage
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store, reader
from user_system.replay.tables import put, unseal

EPISODES, STEPS = 30, 16


@pytest.fixture
def written(tmp_path, recorder):
    """A closed store of two robots with images and labels, and all observations by number."""
    robots = [recorder(f"arm-{i}", cameras={"cam": (40, 40, 3)}) for i in (1, 2)]
    observations = {}
    with Store(tmp_path / "replay").open(create=True) as store:
        for _ in range(EPISODES):
            for robot in robots:
                fragments = robot.run_episode(STEPS)
                store.append(fragments)
                for f in fragments:
                    for row, number in enumerate(f.observation["flag"].tolist()):
                        observations[number] = f.observation["cam"][row].copy()
        store.label("arm-1-1-1", "success", "v", True, None)
    return tmp_path / "replay", observations


def served(path, observations):
    """Return the numbers of all steps that a store serves, each compared with what was written."""
    with reader(path).open() as env:
        data = ReplayData(env)
        batch = data.consume(Draw(data.count()))
        while True:  # damaged images are found while drawing
            numbers = batch.observation["flag"].tolist()
            for row, number in enumerate(numbers):
                assert (batch.observation["cam"][row] == observations[number]).all()
                assert batch.next_observation["flag"][row] == number + 1
                assert (batch.next_observation["cam"][row] == observations[number + 1]).all()
            return numbers


def serve_all(path, observations):
    """As ``served``, where some images may be damaged."""
    with reader(path).open() as env:
        data = ReplayData(env, seed=1)
        for _ in range(40):
            data.draw(Draw(256))
        count = data.count()
    assert count
    with reader(path).open() as env:
        data = ReplayData(env, seed=1)
        for _ in range(40):
            data.draw(Draw(256))
        batch = data.consume(Draw(data.count()))
        numbers = batch.observation["flag"].tolist()
        for row, number in enumerate(numbers):
            assert (batch.observation["cam"][row] == observations[number]).all()
            assert (batch.next_observation["cam"][row] == observations[number + 1]).all()
    return numbers


def test_a_sound_store_comes_out_as_it_is(written, tmp_path):
    path, observations = written
    done = salvage(path, tmp_path / "new")
    assert (done.records, done.lost_records, done.lost_images) == (8 * EPISODES, 0, 0)
    assert (done.steps, done.images, done.labels) == (
        2 * EPISODES * STEPS,
        2 * EPISODES * (STEPS + 1),
        1,
    )
    assert sorted(served(tmp_path / "new", observations)) == sorted(served(path, observations))
    with Store(tmp_path / "new").open() as store:
        assert store.expected("arm-1", 1) == store.expected("arm-2", 1) == 4 * EPISODES
        data = ReplayData(store.env)
        batch = data.consume(Draw(STEPS, columns=("success",)))
        assert (batch.extras["success"] == 1).any()


def test_a_file_without_its_beginning_still_gives_what_it_holds(written, tmp_path):
    path, observations = written
    with (path / "data.mdb").open("r+b") as file:
        file.write(bytes(8192))  # both meta pages: LMDB itself cannot open this
    salvage(path, tmp_path / "new")
    assert len(served(tmp_path / "new", observations)) == 2 * EPISODES * STEPS


@pytest.mark.parametrize("seed", range(6))
def test_random_damage_costs_no_more_than_what_it_hit(written, tmp_path, seed):
    path, observations = written
    print("seed", seed)
    rng = random.Random(seed)
    data = bytearray((path / "data.mdb").read_bytes())
    kind = seed % 3
    at = rng.randrange(2, len(data) // 4096) * 4096
    if kind == 0:
        data[at : at + 4096] = bytes(4096)
    elif kind == 1:
        data[at : at + 4096] = rng.randbytes(4096)
    else:
        del data[len(data) - rng.randrange(1, len(data) // 10) :]
    (path / "data.mdb").write_bytes(data)
    done = salvage(path, tmp_path / "new")
    numbers = serve_all(tmp_path / "new", observations)
    if kind < 2:
        # One page touches one record with its images, or a leaf of the small values.
        assert len(numbers) >= 0.99 * 2 * EPISODES * STEPS - 4
    else:
        assert len(numbers) >= 0.85 * 2 * EPISODES * STEPS
    assert done.records >= 0.85 * 8 * EPISODES


def test_what_was_removed_stays_removed(written, tmp_path):
    path, observations = written
    with Store(path).open() as store:
        for episode in (4, EPISODES):  # one in between, and the newest
            store.delete(f"arm-2-1-{episode}", who="ada", why="a face")
    before = sorted(served(path, observations))
    done = salvage(path, tmp_path / "new")
    assert done.records == 8 * EPISODES - 8
    assert sorted(served(tmp_path / "new", observations)) == before
    with Store(tmp_path / "new").open() as store:
        assert store.expected("arm-2", 1) == 4 * EPISODES, "it would be taken again"


def test_it_refuses_a_place_that_is_taken_and_a_store_that_is_in_use(written, tmp_path):
    path, _ = written
    (tmp_path / "taken").mkdir()
    with pytest.raises(StoreError, match="there already"):
        salvage(path, tmp_path / "taken")
    with Store(path).open(), pytest.raises(StoreError, match="another process writes"):
        salvage(path, tmp_path / "new")


def test_hosts_go_on_where_they_were(written, tmp_path, recorder):
    path, _ = written
    salvage(path, tmp_path / "new")
    robot = recorder(
        "arm-1", cameras={"cam": (40, 40, 3)}, sequence=4 * EPISODES, episodes=EPISODES
    )
    with Store(tmp_path / "new").open() as store:
        assert store.append(robot.run_episode(STEPS)) == []
        assert store.stats()["appended_fragments"] == 4
        assert np.isfinite(store.stats()["live_bytes"])


def test_hashes_are_not_taken_for_sources(written, tmp_path):
    """Those of labels and of episodes, and their keys, may look like how far a source is."""
    path, _ = written
    versions = (f"v{i}" for i in range(1 << 14))
    alike = [v for v in versions if labels.encode("e", "success", v, True, None).of[-9] == 0]
    assert len(alike) > 20
    with Store(path).open() as store:
        before = rows(store, "next")
        for version in alike:
            store.label("e", "success", version, True, None)
        of, says = source_key("a text", 1), b"\xff" * 16  # as a hash may be, once in a long time
        store.env.write(lambda txn: put(txn, store.env, "versions", of, says))
        rank = bytes(8) + b"\x7f"
        store.env.write(lambda txn: put(txn, store.env, "order", rank, bytes(3) + says[3:]))
    salvage(path, tmp_path / "new")
    with Store(tmp_path / "new").open() as store:
        assert rows(store, "next") == before


def rows(store, table):
    """Return all keys of a table with how far each source is."""
    with store.env.read() as txn:
        cursor = txn.cursor(store.env.table(table))
        return {bytes(key): Progress.parse(unseal(bytes(key), v)).expected for key, v in cursor}


@pytest.mark.parametrize("name", ["arm-1", "a", "x" * 255, "Arm \u00fc", ""])
@pytest.mark.parametrize("epoch", [0, 1, 256, (1 << 64) - 1])
def test_keys_of_sources_are_known_as_such(name, epoch):
    assert is_source_key(source_key(name, epoch))


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"offset",
        bytes(8),
        b"arm-1" + bytes([1]) + bytes(8),
        b"arm\0one" + bytes(9),
        b"\xff\xfe\xfd" + bytes(9),
        b"x" * 256 + bytes(9),
    ],
)
def test_other_keys_are_not_of_sources(key):
    assert not is_source_key(key)
