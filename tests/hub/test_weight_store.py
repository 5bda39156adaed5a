"""The weight store: versions only grow, content is what was offered, old ones go."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from user_system.codec import weights as codec
from user_system.codec.arrays import checksum
from user_system.core.errors import ConfigError, DamageError, SpecError, StoreError
from user_system.core.ports import Manifest, Shelf, TensorEntry
from user_system.hub import manifests
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
    opened = WeightStore(tmp_path / "w", clock, WeightStoreConfig(keep=3, older=0))
    opened.open()
    return opened


def reopened(tmp_path, clock, **options):
    store = WeightStore(tmp_path / "w", clock, WeightStoreConfig(keep=3, older=0), **options)
    store.open()
    return store


def read_all(store, tensor):
    return bytes(store.tensor(tensor))


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
    version = publish(third, tensors(3.0))[0]
    assert version > 2
    third.close()
    fourth = reopened(tmp_path, clock)
    assert publish(fourth, tensors(4.0))[0] == version + 1, "in order, none is left out"


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
    store.flush()
    files = {path.name for path in (tmp_path / "w" / "pick").iterdir()}
    # The first version is gone, but the others need the bias that it brought.
    assert files == {"00000001.old", "00000001.bin"} | {
        f"0000000{version}.{kind}" for version in kept for kind in ("json", "bin")
    }
    again = reopened(tmp_path, clock, pinned=lambda policy: frozenset({2}))
    assert [v for v in range(1, 8) if again.get("pick", v)] == kept
    publish(again, tensors(9.0, extra=1.0))
    for value in range(10, 14):
        publish(again, tensors(float(value), extra=1.0))
    again.flush()
    assert "00000001.bin" in {path.name for path in (tmp_path / "w" / "pick").iterdir()}
    last = reopened(tmp_path, clock)
    publish(last, tensors(20.0, extra=1.0))
    last.flush()
    assert "00000001.bin" not in {path.name for path in (tmp_path / "w" / "pick").iterdir()}


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


def test_a_publish_that_the_disk_refuses_leaves_no_file(store, monkeypatch):
    publish(store, tensors(1.0))
    before = sorted(store._directory.rglob("*.*"))

    def full(path, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StoreError, match="No space left"):
            publish(store, tensors(2.0))
    assert sorted(store._directory.rglob("*.*")) == before
    assert store.newest("pick") == 1
    publish(store, tensors(2.0))
    assert store.newest("pick") > 1


def test_forgotten_uploads_say_what_to_do(store):
    with pytest.raises(SpecError, match="Offer the weights again"):
        store.commit("nope")


def test_announcements_carry_age(store, clock):
    publish(store, tensors(1.0))
    clock.pass_s(1.5)
    (current,) = store.current()
    assert (current.policy, current.version) == ("pick", 1)
    assert current.age_s == pytest.approx(1.5)


@pytest.mark.parametrize("damage", ["manifest", "cut", "empty", "flipped", "gone", "format"])
def test_what_is_not_what_was_written_is_set_aside_and_the_rest_served(
    store, tmp_path, clock, damage
):
    publish(store, tensors(1.0, extra=1.0))
    publish(store, tensors(2.0, extra=2.0))
    store.close()
    path = tmp_path / "w" / "pick" / "00000002.json"
    tensor = path.with_suffix(".bin")
    data = bytearray(tensor.read_bytes())
    match damage:
        case "manifest":
            path.write_text(path.read_text().replace("float32", "float64"))
        case "format":
            path.write_text(path.read_text().replace('"format":2', '"format":1'))
        case "cut":
            tensor.write_bytes(data[:-1])
        case "empty":
            tensor.write_bytes(b"")
        case "flipped":
            data[-1] ^= 1
            tensor.write_bytes(data)
        case "gone":
            tensor.unlink()
    again = reopened(tmp_path, clock)
    assert again.newest("pick") == 1
    assert again.stats()["damaged"] == 1
    assert not path.exists()
    assert publish(again, tensors(3.0))[0] > 2


def test_a_version_whose_tensors_lay_in_a_damaged_one_goes_with_it(store, tmp_path, clock):
    publish(store, tensors(1.0))
    publish(store, tensors(2.0))  # the bias is that of version 1
    store.close()
    (tmp_path / "w" / "pick" / "00000001.bin").write_bytes(b"")
    again = reopened(tmp_path, clock)
    assert again.newest("pick") == 0
    assert publish(again, tensors(2.0))[0] > 2
    entries = again.get("pick", 0).tensors
    assert read_all(again, next(e.hash for e in entries if e.name == "b"))


def test_a_file_with_all_that_is_missing_is_taken_over(store, tmp_path):
    modules = tensors(1.0)
    manifest = manifest_of(modules)
    upload, _ = store.offer(manifest)
    blocks = [modules[e.name].tobytes() for e in manifest.tensors]  # b, then w
    assert [len(b) for b in blocks] == [16, 48]
    incoming = tmp_path / "w" / "incoming"
    (incoming / "x.new").write_bytes(blocks[0] + bytes(48) + blocks[1])
    store.adopt(upload, "x.new")
    assert store.commit(upload) == 1
    assert read_all(store, manifest.tensors[1].hash) == blocks[1]


@pytest.mark.parametrize("name", ["../pick/x.new", "/etc/passwd", "x.bin", "gone.new", "link.new"])
def test_no_other_file_is_taken_over(store, tmp_path, name):
    upload, _ = store.offer(manifest_of(tensors(1.0)))
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(112))
    (tmp_path / "w" / "incoming" / "link.new").symlink_to(secret)
    with pytest.raises(SpecError, match="file"):
        store.adopt(upload, name)
    assert secret.read_bytes() == bytes(112)
    assert store.newest("pick") == 0


def test_nothing_is_written_into_a_file_that_was_taken_over(store, tmp_path, monkeypatch):
    modules = tensors(3.0)
    manifest = manifest_of(modules)
    upload, missing = store.offer(manifest)
    first = next(e for e in manifest.tensors if e.hash == missing[0])
    data = modules[first.name].tobytes()
    blocks = [modules[e.name].tobytes() for e in manifest.tensors]
    (tmp_path / "w" / "incoming" / "a.new").write_bytes(blocks[0] + bytes(48) + blocks[1])
    refused = []

    def check(entry, view):
        # A second stream that brings the same version, while the file is looked at.
        with pytest.raises(SpecError, match="taken over"):
            store.put(upload, first.hash, 0, len(data), data)
        with pytest.raises(SpecError, match="taken over"):
            store.adopt(upload, "a.new")
        refused.append(entry.hash)

    monkeypatch.setattr(manifests, "check_tensor", check)
    store.adopt(upload, "a.new")
    assert set(refused) == set(missing)
    assert store.commit(upload) == 1
    for entry in manifest.tensors:
        assert read_all(store, entry.hash) == modules[entry.name].tobytes()


@pytest.mark.parametrize("content", [b"", bytes(112), bytes(111), bytes(200)])
def test_a_file_with_other_bytes_is_refused(store, tmp_path, content):
    upload, missing = store.offer(manifest_of(tensors(1.0)))
    (tmp_path / "w" / "incoming" / "x.new").write_bytes(content)
    with pytest.raises(SpecError):
        store.adopt(upload, "x.new")
    assert store.missing(upload) == missing
    assert not list((tmp_path / "w" / "incoming").iterdir())


@pytest.mark.parametrize("content", [b"", bytes(112), bytes(200)])
@pytest.mark.parametrize("sent_before", [0, 1])
def test_what_could_not_be_taken_over_is_sent(store, tmp_path, content, sent_before):
    """A learner that goes on after a crash lays down more than is lacking, and then sends it."""
    modules = tensors(1.0)
    manifest = manifest_of(modules)
    upload, missing = store.offer(manifest)
    data = {entry.hash: modules[entry.name].tobytes() for entry in manifest.tensors}
    for one in missing[:sent_before]:
        store.put(upload, one, 0, len(data[one]), data[one])
    (tmp_path / "w" / "incoming" / "x.new").write_bytes(content)
    with pytest.raises(SpecError):
        store.adopt(upload, "x.new")
    assert store.offer(manifest) == (upload, missing), "what was sent lay in the file's place"
    for one in missing:
        store.put(upload, one, 0, len(data[one]), data[one])
    assert store.commit(upload) == 1
    for one in missing:
        assert read_all(store, one) == data[one]


def test_half_a_tensor_does_not_go_on_after_a_file_that_was_refused(store, tmp_path):
    modules = tensors(1.0)
    manifest = manifest_of(modules)
    upload, missing = store.offer(manifest)
    data = {entry.hash: modules[entry.name].tobytes() for entry in manifest.tensors}
    one = missing[0]
    store.put(upload, one, 0, len(data[one]), data[one][:8])
    (tmp_path / "w" / "incoming" / "x.new").write_bytes(b"")
    with pytest.raises(SpecError):
        store.adopt(upload, "x.new")
    with pytest.raises(SpecError, match="a gap"):
        store.put(upload, one, 8, len(data[one]), data[one][8:])


def test_those_who_watch_hear_of_each_version(store):
    heard = []
    leave = store.watch(lambda: heard.append(store.newest("pick")))
    publish(store, tensors(1.0))
    store.rollback("pick", 1)
    leave()
    publish(store, tensors(2.0))
    assert heard == [1, 2]


def test_those_who_watch_hear_before_old_versions_are_put_away(store, tmp_path):
    for value in range(1, 4):
        publish(store, tensors(float(value), float(value)))
    seen = []
    store.watch(lambda: seen.append([v.manifest.version for v in store.versions("pick")]))
    publish(store, tensors(4.0, 4.0))
    assert seen == [[1, 2, 3, 4]]
    assert [v.manifest.version for v in store.versions("pick")] == [2, 3, 4]


@pytest.mark.parametrize("way", ["sent", "taken over", "read back"])
def test_who_is_near_is_told_the_checksum_of_what_was_verified(store, tmp_path, clock, way):
    modules = tensors(1.0, 2.0)
    manifest = manifest_of(modules)
    if way == "taken over":
        upload, _ = store.offer(manifest)
        blocks = [modules[e.name].tobytes() for e in manifest.tensors]
        new = tmp_path / "w" / "incoming" / "x.new"
        new.write_bytes(blocks[0] + bytes(48) + blocks[1])
        store.adopt(upload, "x.new")
        store.commit(upload)
    else:
        publish(store, modules)
    if way == "read back":
        store.close()
        store = reopened(tmp_path, clock)
    path = tmp_path / "w" / "pick" / "00000001.bin"
    path.write_bytes(bytes(path.stat().st_size))  # rot, later
    for entry in manifest.tensors:
        assert store.near(entry.hash).check == checksum(modules[entry.name].tobytes())


def test_what_was_published_survives_death_without_a_flush(store, tmp_path, clock, monkeypatch):
    """The number is on the disk before anybody hears it; the rest when nobody waits for it."""
    synced = []
    monkeypatch.setattr("user_system.hub.flusher.sync", synced.append)
    version, _ = publish(store, tensors(1.0))
    promised = json.loads((tmp_path / "w" / "versions.json").read_text())["pick"]
    assert promised >= version
    assert reopened(tmp_path, clock).newest("pick") == version
    store.flush()
    names = [path.name for path in synced]
    assert names == ["00000001.bin", "00000001.json", "pick"], "tensors first, then what says so"


def test_a_thousand_bad_pushes_make_no_version(store, tmp_path):
    """Shuffled, torn, foreign and not finite; every way in."""
    rng = np.random.default_rng(0)
    publish(store, tensors(1.0))
    before = sorted(path.name for path in (tmp_path / "w" / "pick").iterdir())
    for number in range(1000):
        with pytest.raises((SpecError, DamageError)):
            bad_push(store, rng, number)
        assert store.newest("pick") == 1
    assert store.stats()["refused"] >= 600
    store.flush()
    assert sorted(path.name for path in (tmp_path / "w" / "pick").iterdir()) == before


def bad_push(store, rng, number):
    value = 2.0 + number
    modules = tensors(value)
    modules["w"] = modules["w"] + rng.random((3, 4), np.float32)
    kind = number % 8
    if kind == 0:  # not finite
        modules["w"][rng.integers(3), rng.integers(4)] = rng.choice([np.nan, np.inf, -np.inf])
    if kind == 1:  # another architecture
        modules = [
            {"w": modules["w"].reshape(4, 3), "b": modules["b"]},
            {"w": modules["w"].astype(np.float64), "b": modules["b"]},
            {"w": modules["w"]},
            {**modules, "c": modules["b"]},
        ][rng.integers(4)]
    manifest = manifest_of(modules)
    if kind == 2:  # hashes of other tensors
        rows = list(manifest.tensors)
        rows[0] = rows[0]._replace(hash=rng.bytes(32).hex())
        manifest = replace(manifest, tensors=tuple(rows))
    upload, missing = store.offer(manifest)
    parts = [
        (entry.hash, start, len(data), data[start : start + 5])
        for entry in manifest.tensors
        if entry.hash in missing
        for data in [modules[entry.name].tobytes()]
        for start in range(0, len(data), 5)
    ]
    if kind == 3:  # shuffled
        parts = [parts[i] for i in rng.permutation(len(parts))]
        if parts[0][1] == 0:
            parts.reverse()
    if kind == 4:  # torn
        parts = parts[: rng.integers(len(parts))]
    if kind == 5:  # a byte is another one
        tensor, start, total, data = parts[1]
        parts[1] = tensor, start, total, bytes([data[0] ^ 1]) + data[1:]
    if kind == 6:  # for a tensor that was not offered
        parts = [(rng.bytes(32).hex(), 0, 4, bytes(4)), *parts]
    if kind == 7:  # longer than it is
        parts = [(t, s, n + 4, d) for t, s, n, d in parts]
    for part in parts:
        store.put(upload, *part)
    store.commit(upload)


def test_published_is_told_of_each_new_version_once(tmp_path, clock):
    told = []
    store = reopened(tmp_path, clock, published=told.append)
    publish(store, tensors(1.0))
    publish(store, tensors(1.0))
    publish(store, tensors(2.0))
    assert [current.version for current in told] == [1, 2]


def test_one_can_roll_back_to_what_was_long_ago(tmp_path, clock):
    store = WeightStore(tmp_path / "w", clock, WeightStoreConfig(keep=3))
    store.open()
    for value in range(1, 101):
        publish(store, tensors(float(value)))
    versions = [version for version in range(1, 101) if store.get("pick", version)]
    assert versions[0] == 1
    assert versions[-3:] == [98, 99, 100]
    assert len(versions) < 12
    assert store.rollback("pick", 1) == 101
    assert store.get("pick", 0).hash == store.get("pick", 1).hash
