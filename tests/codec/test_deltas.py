"""Forms of tensors on the way: bit for bit what went in, and nothing else is taken for one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from user_system.codec import deltas
from user_system.codec.arrays import DTYPES, width
from user_system.codec.weights import round_to_bfloat16
from user_system.core.errors import DamageError

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40)


@st.composite
def tensors(draw):
    """Bytes of any tensor that may travel: NaNs with any payload, infinities, denormals."""
    dtype = draw(st.sampled_from(sorted(DTYPES - {"bool"})))
    shape = draw(SHAPES)
    size = int(np.prod(shape, dtype=np.int64)) * width(dtype)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["noise", "zeros", "normal"]))
    if kind == "noise" or np.dtype(dtype).kind != "f":
        return dtype, rng.bytes(size)
    values = rng.standard_normal(shape) if kind == "normal" else np.zeros(shape)
    return dtype, values.astype(dtype).tobytes()


@st.composite
def pairs(draw):
    """A tensor and an older one that it was made of by changing some elements."""
    dtype, old = draw(tensors())
    step = width(dtype)
    new = bytearray(old)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    for _ in range(draw(st.integers(0, 30)) if old else 0):
        at = int(rng.integers(len(old) // step)) * step
        new[at : at + step] = rng.bytes(step)
    return dtype, bytes(new), old


@given(tensors(), st.booleans())
def test_whole_tensors_come_back_bit_for_bit(tensor, pack):
    dtype, data = tensor
    form, coded = deltas.encode(data, width(dtype), None, pack=pack)
    assert form not in deltas.NEEDS_BASE
    assert len(coded) <= len(data)
    assert bytes(deltas.decode(form, coded, len(data), width(dtype), None)) == data


@given(pairs(), st.booleans())
def test_changed_tensors_come_back_bit_for_bit(pair, pack):
    dtype, new, old = pair
    form, coded = deltas.encode(new, width(dtype), old, pack=pack)
    assert len(coded) <= len(new)
    assert bytes(deltas.decode(form, coded, len(new), width(dtype), old)) == new
    again = deltas.encode(new, width(dtype), old, pack=pack)
    assert (again[0], bytes(again[1])) == (form, bytes(coded)), "a body must be the same again"


@given(st.sampled_from(deltas.FORMS), st.binary(max_size=200), pairs())
def test_nothing_but_an_error_comes_of_other_bytes(form, coded, pair):
    dtype, new, old = pair
    try:
        out = deltas.decode(form, coded, len(new), width(dtype), old)
    except DamageError:
        return
    assert len(out) == len(new)


@given(pairs(), st.integers(0, 2**32), st.booleans())
def test_mutated_forms_give_an_error_or_a_tensor_of_that_size(pair, seed, pack):
    dtype, new, old = pair
    form, coded = deltas.encode(new, width(dtype), old, pack=pack)
    broken = bytearray(coded)
    rng = np.random.default_rng(seed)
    if broken:
        broken[int(rng.integers(len(broken)))] ^= 1 + int(rng.integers(255))
    try:
        out = deltas.decode(form, bytes(broken), len(new), width(dtype), old)
    except DamageError:
        return
    assert len(out) == len(new)


def test_few_changes_take_few_bytes():
    rng = np.random.default_rng(0)
    old = rng.standard_normal(100_000).astype(np.float32)
    new = old.copy()
    new[rng.integers(len(new), size=500)] += 1.0
    for pack in (False, True):
        form, coded = deltas.encode(new.tobytes(), 4, old.tobytes(), pack=pack)
        assert form == deltas.SPARSE
        assert len(coded) < 500 * 7


def test_small_steps_of_all_numbers_take_fewer_bytes_where_time_is_cheap():
    rng = np.random.default_rng(0)
    old = rng.standard_normal(100_000).astype(np.float32)
    new = old + np.float32(1e-4) * rng.standard_normal(100_000).astype(np.float32)
    assert deltas.encode(new.tobytes(), 4, old.tobytes(), pack=False)[0] == deltas.RAW
    form, coded = deltas.encode(new.tobytes(), 4, old.tobytes(), pack=True)
    assert form == deltas.XOR
    assert len(coded) < 0.7 * new.nbytes


def test_what_does_not_get_smaller_travels_as_it_is():
    data = np.random.default_rng(0).bytes(400_000)
    assert deltas.encode(data, 4, None, pack=True) == (deltas.RAW, data)


@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(width=32)))
def test_bfloat16_is_the_nearest_and_stays_what_it_is(values):
    rounded = round_to_bfloat16(values)
    assert rounded.dtype == np.float32
    assert rounded.shape == values.shape
    np.testing.assert_array_equal(round_to_bfloat16(rounded), rounded)
    finite = np.isfinite(values)
    assert (np.isnan(rounded) == np.isnan(values)).all()
    step = np.abs(values[finite].astype(np.float64)) * 2.0**-8 + 2.0**-133
    back = rounded[finite].astype(np.float64)
    near = np.abs(back - values[finite].astype(np.float64)) <= step
    # The largest ones round to infinity, as they do in bfloat16.
    assert (near | (np.isinf(back) & (np.abs(values[finite]) > 3.3e38))).all()


def test_bfloat16_takes_half_and_costs_no_compressing():
    values = round_to_bfloat16(np.random.default_rng(0).standard_normal(10_000).astype(np.float32))
    form, coded = deltas.encode(values.tobytes(), 4, None, pack=False)
    assert form == deltas.HALF
    assert len(coded) == values.nbytes // 2


@pytest.mark.parametrize("form", sorted(deltas.NEEDS_BASE))
def test_a_change_needs_the_older_tensor(form):
    with pytest.raises(DamageError, match="without the older one"):
        deltas.decode(form, b"\0" * 20, 16, 4, None)
    with pytest.raises(DamageError, match="unknown form"):
        deltas.decode("zip", b"", 16, 4, None)


def test_a_frame_that_states_much_is_refused_before_there_is_memory():
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    with pytest.raises(DamageError, match="wrong size"):
        deltas.decode(deltas.ZSTD, bomb, 1 << 12, 4, None)
    with pytest.raises(DamageError, match="wrong size"):
        deltas.decode(deltas.SPARSE, b"\1" + bomb, 1 << 12, 4, bytes(1 << 12))
