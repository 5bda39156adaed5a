import hashlib
import json
import os

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from user_system.codec import arrays, weights
from user_system.core.errors import DamageError, SpecError, StoreError

keys = st.text(max_size=4) | st.sampled_from(["$array", "$tuple", "a/b", "~", "#1", "__metadata__"])
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from(sorted(arrays.DTYPES)).flatmap(
        lambda name: hnp.arrays(name, hnp.array_shapes(min_dims=0, min_side=0, max_side=3))
    )
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=10,
)


def assert_same(got, want):
    assert type(got) is type(want)
    if isinstance(want, np.ndarray):
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        assert got.tobytes() == want.tobytes()
    elif isinstance(want, dict):
        assert list(got) == list(want)
        for key in want:
            assert_same(got[key], want[key])
    elif isinstance(want, (list, tuple)):
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            assert_same(one, other)
    else:
        assert got == want


@given(trees)
def test_round_trip_is_exact(tree):
    assert_same(weights.from_bytes(weights.to_bytes(tree)), tree)


@given(trees)
def test_flatten_gives_each_array_its_own_path(tree):
    structure, found = weights.flatten(tree)
    assert_same(weights.unflatten(structure, found), tree)
    assert_same(weights.unflatten(json.loads(json.dumps(structure)), found), tree)


def test_random_states_come_back():
    rng = np.random.default_rng(3)
    state = weights.from_bytes(weights.to_bytes(rng.bit_generator.state))
    other = np.random.default_rng()
    other.bit_generator.state = state
    assert rng.random() == other.random()


def test_numpy_scalars_become_numbers():
    tree = weights.from_bytes(weights.to_bytes({"a": np.float32(0.5), "b": np.int64(3)}))
    assert_same(tree, {"a": 0.5, "b": 3})


@pytest.mark.parametrize(
    "value", [object(), b"bytes", {1, 2}, np.array(["x"]), {1.5: 2}, {True: 1}, {None: 1}]
)
def test_what_cannot_be_kept_is_named(value):
    with pytest.raises(SpecError, match="/state"):
        weights.to_bytes({"state": value})


def test_a_checkpoint_is_an_ordinary_safetensors_file(tmp_path):
    weights.save(tmp_path / "c.safetensors", {"actor": {"w": np.ones(3, np.float32)}, "step": 4})
    got = safetensors.numpy.load_file(tmp_path / "c.safetensors")
    assert list(got) == ["/actor/w"]


def test_saving_replaces_whole_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "c.safetensors"
    for step in range(3):
        weights.save(path, {"step": step, "w": np.full(1000, step)})
    assert weights.load(path)["step"] == 2
    assert os.listdir(tmp_path) == [path.name]


def test_failed_saving_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    weights.save(path, {"step": 1})

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space"):
            weights.save(path, {"step": 2})
    assert weights.load(path) == {"step": 1}
    assert os.listdir(tmp_path) == [path.name]


def test_the_name_appears_only_after_the_bytes_are_safe(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    seen = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (seen.append(path.exists()), sync(fd)))
    weights.save(path, {"step": 1})
    assert seen == [False, True]


def test_missing_files_are_named(tmp_path):
    with pytest.raises(StoreError, match="nowhere"):
        weights.load(tmp_path / "nowhere")


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "c.safetensors"
    weights.save(path, {"w": np.zeros(100)})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamageError, match=r"c\.safetensors is damaged"):
        weights.load(path)


@given(trees, st.data())
def test_changed_bytes_never_give_another_tree(tree, data):
    buffer = bytearray(weights.to_bytes(tree))
    where = data.draw(st.integers(0, len(buffer) - 1))
    buffer[where] ^= data.draw(st.integers(1, 255))
    try:
        got = weights.from_bytes(bytes(buffer))
    except DamageError:
        return
    # Only spaces that safetensors pads its header with carry no meaning.
    assert_same(got, tree)


@given(trees, st.data())
def test_cut_files_are_damage(tree, data):
    buffer = weights.to_bytes(tree)
    with pytest.raises(DamageError):
        weights.from_bytes(buffer[: data.draw(st.integers(0, len(buffer) - 1))])


@given(st.binary(max_size=100))
def test_random_bytes_are_damage(data):
    with pytest.raises(DamageError):
        weights.from_bytes(data)


def test_foreign_safetensors_are_refused():
    with pytest.raises(DamageError, match="not a checkpoint"):
        weights.from_bytes(safetensors.numpy.save({"w": np.ones(2)}))


@pytest.mark.parametrize(
    "tree",
    [{"$array": "/gone"}, {"$array": 1}, {"$tuple": 1}, {"$items": [[1.5, 2]]}, {"$new": 1}, None],
)
def test_trees_that_do_not_fit_their_arrays_are_damage(tree):
    with pytest.raises(DamageError):
        weights.unflatten(tree, {"/w": np.ones(1)} if tree is None else {})


def test_tensor_hash_is_the_documented_one():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert (
        weights.tensor_hash(array)
        == hashlib.sha256(b"float32[2,3]\n" + array.tobytes()).hexdigest()
    )
    assert weights.tensor_hash(array.astype(">f4")) == weights.tensor_hash(array)
    assert weights.tensor_hash(np.asfortranarray(array)) == weights.tensor_hash(array)


def test_weights_hash_depends_on_everything_but_order():
    one, two = np.ones(2, np.float32), np.zeros(3, np.float32)
    base = weights.weights_hash({"policy": {"w": one, "b": two}}, {"mean": one})
    assert base == weights.weights_hash({"policy": {"b": two, "w": one}}, {"mean": one})
    assert base == weights.entries_hash(
        reversed(weights.entries({"policy": {"w": one, "b": two}}, {"mean": one}))
    )
    others = [
        weights.weights_hash({"policy": {"w": one, "b": two}}),
        weights.weights_hash({"policy": {"w": one, "c": two}}, {"mean": one}),
        weights.weights_hash({"critic": {"w": one, "b": two}}, {"mean": one}),
        weights.weights_hash({"policy": {"w": two, "b": one}}, {"mean": one}),
        weights.weights_hash({"policy": {"w": one.astype("f8"), "b": two}}, {"mean": one}),
    ]
    assert len({base, *others}) == 6


def test_statistics_is_no_module_name():
    with pytest.raises(SpecError, match="reserved"):
        weights.entries({"statistics": {}})
