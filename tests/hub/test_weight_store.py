"""The weight store: versions only grow, content is what was offered, old ones go."""

import numpy as np
import pytest

from user_system.codec import weights as codec
from user_system.core.errors import ConfigError, DamageError, SpecError
from user_system.core.ports import Manifest, Shelf, TensorEntry
from user_system.hub.weight_store import WeightStore, WeightStoreConfig


def tensors(value, extra=0.0):
    return {
        "w": np.full((3, 4), value, np.float32),
        "b": np.full(4, extra, np.float32),
    }


def manifest_of(modules, policy="pick"):
    rows = codec.entries({"policy": modules})
    entries = tuple(TensorEntry(*row) for row in rows)
    return Manifest(policy, 0, codec.entries_hash(rows), entries, notes={"updates": 1.0})


def publish(store, modules, policy="pick", part=7):
    manifest = manifest_of(modules, policy)
    upload, missing = store.offer(manifest)
    by_hash = {e.hash: modules[e.name].tobytes() for e in manifest.tensors}
    for tensor in missing:
        data = by_hash[tensor]
        for start in range(0, len(data), part):
            store.put(upload, tensor, start, len(data), data[start : start + part])
    return store.commit(upload), missing


@pytest.fixture
def store(tmp_path, clock):
    opened = WeightStore(tmp_path / "w", clock, WeightStoreConfig(keep=3))
    opened.open()
    return opened


def reopened(tmp_path, clock, **options):
    store = WeightStore(tmp_path / "w", clock, WeightStoreConfig(keep=3), **options)
    store.open()
    return store


def read_all(store, tensor):
    data, total = b"", 1
    while len(data) < total:
        piece, total = store.read(tensor, len(data), 5)
        data += piece
    return data


def test_what_is_put_can_be_read_and_only_changed_tensors_travel(store):
    first, missing = publish(store, tensors(1.0))
    assert first == 1
    assert len(missing) == 2
    second, missing = publish(store, tensors(2.0))
    assert second == 2
    assert len(missing) == 1  # the bias did not change
    manifest = store.get("pick", 0)
    assert manifest.version == 2
    weight = next(e for e in manifest.tensors if e.name == "w")
    assert read_all(store, weight.hash) == tensors(2.0)["w"].tobytes()
    assert store.get("pick", 1).version == 1
    assert store.get("pick", 9) is None
    assert store.get("other", 0) is None


def test_it_is_a_shelf(store):
    shelf: Shelf = store
    assert shelf.get("pick", 0) is None


def test_versions_survive_death_and_never_repeat(store, tmp_path, clock):
    publish(store, tensors(1.0))
    publish(store, tensors(2.0))
    again = reopened(tmp_path, clock)
    assert again.newest("pick") == 2
    (tmp_path / "w" / "pick" / "00000002.json").unlink()  # died between promise and manifest
    third = reopened(tmp_path, clock)
    assert third.newest("pick") == 1
    assert publish(third, tensors(3.0))[0] == 3


def test_the_same_content_again_is_the_same_version(store):
    assert publish(store, tensors(1.0))[0] == 1
    assert publish(store, tensors(1.0))[0] == 1
    assert store.stats()["doubled"] == 1


def test_rollback_is_a_new_version_with_old_content(store):
    publish(store, tensors(1.0))
    publish(store, tensors(2.0))
    assert store.rollback("pick", 1) == 3
    assert store.get("pick", 0).hash == store.get("pick", 1).hash
    with pytest.raises(ConfigError, match="allowed: 1, 2, 3"):
        store.rollback("pick", 7)


def test_old_versions_go_unless_pinned_and_shared_tensors_stay(tmp_path, clock):
    store = reopened(tmp_path, clock, pinned=lambda policy: frozenset({2}))
    for value in range(1, 7):
        publish(store, tensors(float(value)))
    kept = [v for v in range(1, 8) if store.get("pick", v)]
    assert kept == [2, 4, 5, 6]
    for version in kept:
        for entry in store.get("pick", version).tensors:
            assert read_all(store, entry.hash)
    files = list((tmp_path / "w" / "tensors").glob("*/*"))
    assert len(files) == 5  # four weights and the one shared bias


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"policy": "../etc"}, "policy id"),
        ({"policy": "tensors"}, "policy id"),
        ({"hash": "0" * 64}, "hash is not that"),
        ({"tensors": ()}, "at least one"),
        ({"tensors": (TensorEntry("m", "n", "object", (2,), "a" * 64),)}, "may not travel"),
        ({"tensors": (TensorEntry("m", "n", "float32", (2,), "../../x"),)}, "may not travel"),
        ({"tensors": (TensorEntry("m", "n", "float64", (1 << 40,), "a" * 64),)}, "too large"),
    ],
)
def test_a_bad_offer_is_refused_before_anything_is_stored(store, change, match):
    good = manifest_of(tensors(1.0))
    fields = {"policy": good.policy, "hash": good.hash, "tensors": good.tensors} | change
    with pytest.raises(SpecError, match=match):
        store.offer(Manifest(fields["policy"], 0, fields["hash"], fields["tensors"]))


def test_another_architecture_is_refused(store):
    publish(store, tensors(1.0))
    with pytest.raises(SpecError, match="another architecture"):
        store.offer(manifest_of({"w": np.zeros((3, 5), np.float32), "b": np.zeros(4, np.float32)}))


def test_nan_and_wrong_bytes_and_gaps_are_refused_and_nothing_becomes_a_version(store):
    with pytest.raises(SpecError, match="not finite"):
        publish(store, tensors(np.nan))
    manifest = manifest_of(tensors(1.0))
    upload, missing = store.offer(manifest)
    entry = next(e for e in manifest.tensors if e.name == "w")
    with pytest.raises(SpecError, match="not the one offered"):
        store.put(upload, entry.hash, 0, 48, bytes(48))
    with pytest.raises(SpecError, match="gap"):
        store.put(upload, entry.hash, 8, 48, bytes(8))
    with pytest.raises(SpecError, match="wrong size"):
        store.put(upload, entry.hash, 0, 49, bytes(8))
    with pytest.raises(SpecError, match="still missing"):
        store.commit(upload)
    assert missing
    assert store.newest("pick") == 0


def test_a_broken_upload_goes_on_with_the_next_tensor(store):
    modules = tensors(1.0)
    manifest = manifest_of(modules)
    upload, missing = store.offer(manifest)
    first = next(e for e in manifest.tensors if e.hash == missing[0])
    data = modules[first.name].tobytes()
    store.put(upload, first.hash, 0, len(data), data)
    _, still = store.offer(manifest)
    assert still == missing[1:]


def test_forgotten_uploads_say_what_to_do(store):
    with pytest.raises(SpecError, match="Offer the weights again"):
        store.commit("nope")


def test_announcements_carry_age(store, clock):
    publish(store, tensors(1.0))
    clock.pass_s(1.5)
    (current,) = store.current()
    assert (current.policy, current.version) == ("pick", 1)
    assert current.age_s == pytest.approx(1.5)


def test_a_damaged_manifest_is_named(store, tmp_path, clock):
    publish(store, tensors(1.0))
    path = tmp_path / "w" / "pick" / "00000001.json"
    path.write_text(path.read_text().replace("float32", "float64"))
    with pytest.raises(DamageError, match=r"00000001\.json is damaged"):
        reopened(tmp_path, clock)


def test_published_is_told_of_each_new_version_once(tmp_path, clock):
    told = []
    store = reopened(tmp_path, clock, published=told.append)
    publish(store, tensors(1.0))
    publish(store, tensors(1.0))
    publish(store, tensors(2.0))
    assert [current.version for current in told] == [1, 2]
