import json
import struct

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from user_system.codec import arrays
from user_system.core.errors import DamageError, SpecError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
metas = st.dictionaries(st.text(max_size=8), json_values, max_size=4)
any_array = st.sampled_from(sorted(arrays.DTYPES)).flatmap(
    lambda name: hnp.arrays(name, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
named_arrays = st.dictionaries(st.text(max_size=8), any_array, max_size=4)


def seal(header: dict, blocks: bytes = b"") -> bytes:
    """Make a message with a right checksum and whatever else, as an attacker would."""
    text = json.dumps(header, separators=(",", ":")).encode()
    body = text + (bytes(-(32 + len(text)) % 64) + blocks if blocks else b"")
    prefix = struct.pack("<4sHHIIQ", b"USAR", 1, 0, len(text), 0, 32 + len(body))
    return prefix + struct.pack("<Q", xxhash.xxh3_64_intdigest(prefix + body)) + body


@given(metas, named_arrays)
def test_round_trip(meta, blocks):
    got_meta, got = arrays.unpack(arrays.pack(meta, blocks))
    assert got_meta == meta
    assert list(got) == list(blocks)
    for name, array in blocks.items():
        assert got[name].dtype == array.dtype
        assert got[name].shape == array.shape
        assert got[name].tobytes() == array.tobytes()


def test_views_are_aligned_read_only_and_not_copied():
    buffer = arrays.pack({"n": 1}, {"a": np.arange(3, dtype=np.uint8), "b": np.ones((2, 2))})
    _, got = arrays.unpack(buffer)
    base = np.frombuffer(buffer, np.uint8)
    for array in got.values():
        assert np.shares_memory(array, base)
        assert (array.ctypes.data - base.ctypes.data) % arrays.ALIGN == 0
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


@pytest.mark.parametrize(
    "array",
    [np.arange(4, dtype=">i4"), np.arange(12.0).reshape(3, 4).T, np.arange(10)[::-2], np.array(2)],
    ids=["big-endian", "transposed", "strided", "scalar"],
)
def test_any_memory_layout_is_written_as_its_values(array):
    (got,) = arrays.unpack(arrays.pack({}, {"a": array}))[1].values()
    np.testing.assert_array_equal(got, array)
    assert got.shape == array.shape


@pytest.mark.parametrize(
    "array", [np.array(["text"]), np.array([None]), np.zeros(2, complex), np.zeros(2, "M8[s]")]
)
def test_other_dtypes_are_refused(array):
    with pytest.raises(SpecError, match="may not travel"):
        arrays.pack({}, {"a": array})


def test_meta_that_json_cannot_hold_is_refused():
    with pytest.raises(SpecError, match="JSON"):
        arrays.pack({"a": object()}, {})


@given(metas, named_arrays, st.data())
def test_changed_bytes_are_damage(meta, blocks, data):
    buffer = bytearray(arrays.pack(meta, blocks))
    where = data.draw(st.integers(0, len(buffer) - 1))
    buffer[where] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DamageError):
        arrays.unpack(buffer)


@given(named_arrays, st.data())
def test_cut_or_padded_messages_are_damage(blocks, data):
    buffer = arrays.pack({}, blocks)
    with pytest.raises(DamageError):
        arrays.unpack(buffer[: data.draw(st.integers(0, len(buffer) - 1))])
    with pytest.raises(DamageError):
        arrays.unpack(buffer + b"\0")


@given(st.binary(max_size=200))
def test_random_bytes_are_damage(data):
    with pytest.raises(DamageError):
        arrays.unpack(data)


entries = st.tuples(
    st.text(max_size=3) | st.integers(),
    st.sampled_from(["float32", "bool", "object", "complex64", "O", "<f4", ""]) | st.integers(),
    st.lists(st.integers(-2, 2**70) | st.booleans() | st.floats(), max_size=3) | st.integers(),
).map(list)


@given(st.lists(entries | json_values, max_size=3) | json_values, st.binary(max_size=150))
def test_sealed_nonsense_is_refused_without_huge_allocation(table, blocks):
    """The checksum is no secret: every claim of the header is checked for itself."""
    try:
        _, got = arrays.unpack(seal({"meta": {}, "arrays": table}, blocks))
    except DamageError:
        return
    assert sum(array.nbytes for array in got.values()) <= len(blocks)


@pytest.mark.parametrize(
    "shape",
    [[1 << 40], [1 << 62, 0], [-1], [True], [1.0], [1] * 17, "33", None, [1 << 20, 1 << 20]],
)
def test_shapes_that_claim_too_much_are_damage(shape):
    with pytest.raises(DamageError):
        arrays.unpack(seal({"meta": {}, "arrays": [["a", "float32", shape]]}))


def test_bytes_that_are_no_bools_are_damage():
    with pytest.raises(DamageError, match="bool"):
        arrays.unpack(seal({"meta": {}, "arrays": [["a", "bool", [2]]]}, b"\x01\x02"))


def test_names_come_once():
    table = [["a", "uint8", [1]], ["a", "uint8", [0]]]
    with pytest.raises(DamageError, match="twice"):
        arrays.unpack(seal({"meta": {}, "arrays": table}, b"x"))


@pytest.mark.parametrize("header", [[], {}, {"meta": 1, "arrays": []}, {"meta": {}, "arrays": {}}])
def test_headers_of_another_form_are_damage(header):
    with pytest.raises(DamageError):
        arrays.unpack(seal(header))


def test_deeply_nested_header_is_damage():
    text = b'{"meta":{},"arrays":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    prefix = struct.pack("<4sHHIIQ", b"USAR", 1, 0, len(text), 0, 32 + len(text))
    buffer = prefix + struct.pack("<Q", xxhash.xxh3_64_intdigest(prefix + text)) + text
    with pytest.raises(DamageError):
        arrays.unpack(buffer)


def test_longer_than_asked_for_is_damage():
    buffer = arrays.pack({}, {"a": np.zeros(1000, np.uint8)})
    with pytest.raises(DamageError, match="length"):
        arrays.unpack(buffer, max_bytes=500)


def test_meta_may_say_anything_that_the_table_says():
    """The table is found by its text, which strings of ``meta`` cannot hold unescaped."""
    meta = {
        "arrays": [["a", "uint8", [9]]],
        "text": ',"arrays":[',
        "nested": {"x": 1, "arrays": []},
    }
    got, parts = arrays.unpack(arrays.pack(meta, {"b": np.arange(3)}))
    assert got == meta
    assert list(parts) == ["b"]
    for header in ({"meta": {}, "more": 1, "arrays": []}, {"arrays": [], "meta": {}}):
        with pytest.raises(DamageError):
            arrays.unpack(seal(header))


def test_a_table_seen_before_is_still_compared_with_its_message():
    one = arrays.pack({"n": 1}, {"a": np.zeros(4)})
    assert arrays.unpack(one)[1]["a"].shape == (4,)
    with pytest.raises(DamageError, match="end after"):
        arrays.unpack(seal({"meta": {"n": 22}, "arrays": [["a", "float64", [4]]]}, b"\0" * 8))
    with pytest.raises(DamageError, match="longer"):
        arrays.unpack(seal({"meta": {"n": 333}, "arrays": [["a", "float64", [4]]]}, b"\0" * 40))


def test_tables_of_many_arrays_are_not_remembered():
    """A block of many columns has another table each time; 256 of these took 136 MiB."""
    many = {f"x/{i}": np.zeros((3, 1), np.float32) for i in range(2000)}
    before = arrays._table_text.cache_info().currsize
    assert arrays.unpack(arrays.pack({}, many))[1].keys() == many.keys()
    assert arrays._table_text.cache_info().currsize == before
