"""NumPy to Parquet and back, read by plain pyarrow; files that are no whole ones."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from user_system.core.errors import SpecError
from user_system.replay.exchange import parquet
from user_system.replay.exchange.parquet import ColumnType, FileSeries, Source

SHAPES = [(1,), (2,), (3, 2), (1, 1), (2, 1, 3), (1, 2, 1, 2), (2, 1, 1, 1, 2)]
DTYPES = ["bool", "float16", "float32", "float64", "int8", "uint8", "int16", "uint16", "int32",
          "uint32", "int64", "uint64"]  # fmt: skip


def stored(kind, values, tmp_path):
    path = tmp_path / "one.parquet"
    parquet.write(path, parquet.table({"x": kind}, {"x": values}))
    return path


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_come_back_bit_for_bit(tmp_path, rng, dtype, shape):
    tail = () if shape == (1,) else shape
    raw = rng.integers(0, 256, (5, *tail, np.dtype(dtype).itemsize), np.uint8)
    values = raw.reshape(-1).view(dtype).reshape(5, *tail) if dtype != "bool" else raw[..., 0] > 9
    kind = ColumnType(dtype, shape)
    path = stored(kind, values, tmp_path)
    plain = pq.read_table(path)["x"].to_pylist()
    np.testing.assert_array_equal(np.array(plain, dtype).reshape(values.shape), values)
    with Source(path) as source:
        (back,) = source.arrays({"x": kind}, 100)
    assert back["x"].dtype == dtype
    assert back["x"].tobytes() == values.tobytes()


def test_every_nan_and_minus_zero_stays_itself(tmp_path):
    words = np.array([0x7FC00001, 0x7FC00002, 0xFFC00003, 0x80000000, 0, 1], np.uint32)
    values = np.tile(words.view(np.float32), 50)
    path = stored(ColumnType("float32"), values, tmp_path)
    back = pq.read_table(path)["x"].combine_chunks().to_numpy()
    assert back.tobytes() == values.tobytes()


def test_shapes_stand_where_readers_look_for_them(tmp_path):
    columns = {
        "s": ColumnType("int64"), "v": ColumnType("float32", (3,)),
        "m": ColumnType("uint8", (2, 3)), "i": ColumnType("image", (4, 4, 3)),
        "t": ColumnType("string"),
    }  # fmt: skip
    values = {
        "s": np.arange(1), "v": np.zeros((1, 3), np.float32), "m": np.zeros((1, 2, 3), np.uint8),
        "i": [b"png"], "t": ["x"],
    }  # fmt: skip
    made = parquet.table(columns, values)
    features = json.loads(made.schema.metadata[b"huggingface"])["info"]["features"]
    assert features == {
        "s": {"dtype": "int64", "_type": "Value"},
        "v": {"feature": {"dtype": "float32", "_type": "Value"}, "length": 3, "_type": "Sequence"},
        "m": {"shape": [2, 3], "dtype": "uint8", "_type": "Array2D"},
        "i": {"_type": "Image"},
        "t": {"dtype": "string", "_type": "Value"},
    }
    assert made.schema.field("v").type == pa.list_(pa.float32(), 3)
    assert made.schema.field("m").type == pa.list_(pa.list_(pa.uint8()))
    assert made["i"].to_pylist() == [{"bytes": b"png", "path": None}]


@pytest.mark.parametrize("dtype", ["uint8", "float32", "bool"])
@pytest.mark.parametrize("limit", [40_000, 100_000])
def test_files_stay_below_the_limit_and_tables_stay_whole(tmp_path, rng, dtype, limit):
    kind = {"x": ColumnType(dtype, (1000,)), "y": ColumnType(dtype, (3, 2))}
    made = [
        parquet.table(kind, {"x": many(rng, dtype, (n, 1000)), "y": many(rng, dtype, (n, 3, 2))})
        for n in rng.integers(1, 9, 60).tolist()
    ]
    with FileSeries(tmp_path, limit_bytes=limit, chunk_files=2) as series:
        places = [series.write(table) for table in made]
    numbers = [2 * chunk + file for chunk, file in places]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(max(numbers) + 1))
    assert max(numbers) >= 1
    for number in set(numbers):
        path = tmp_path / parquet.place(*divmod(number, 2), "parquet")
        assert path.stat().st_size <= limit
        found = pq.ParquetFile(path)
        wanted = [t for t, n in zip(made, numbers, strict=True) if n == number]
        assert found.num_row_groups == len(wanted)
        for i, table in enumerate(wanted):
            assert found.read_row_group(i).equals(table)
        found.close()


def many(rng, dtype, shape):
    """Numbers that do not compress."""
    if dtype == "bool":
        return rng.random(shape) < 0.5
    raw = rng.integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8)
    values = raw.reshape(-1).view(dtype).reshape(shape)
    return np.where(np.isfinite(values), values, 0) if dtype == "float32" else values


def test_a_table_above_the_limit_has_a_file_of_its_own(tmp_path):
    table = parquet.table({"x": ColumnType("uint8", (99,))}, {"x": np.ones((9, 99), np.uint8)})
    with FileSeries(tmp_path, limit_bytes=10, chunk_files=9) as series:
        assert [series.write(table) for _ in range(2)] == [(0, 0), (0, 1)]


def test_the_place_is_known_before_writing(tmp_path):
    table = parquet.table({"x": ColumnType("uint8", (99,))}, {"x": np.ones((9, 99), np.uint8)})
    with FileSeries(tmp_path, limit_bytes=9000, chunk_files=9) as series:
        places = [(series.reserve(table), series.write(table)) for _ in range(9)]
    assert all(said == went for said, went in places)
    assert places[0] != places[-1]


def test_a_file_without_footer_is_refused(tmp_path):
    path = stored(ColumnType("int64"), np.arange(9), tmp_path)
    data = path.read_bytes()
    for cut in (0, 3, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(SpecError, match="not a whole Parquet file"):
            Source(path)


def test_damaged_pages_are_refused_not_decoded(tmp_path, rng):
    values = rng.integers(0, 1 << 62, 4000)
    path = stored(ColumnType("int64"), values, tmp_path)
    data = bytearray(path.read_bytes())
    data[4:40] = bytes(36)
    path.write_bytes(bytes(data))
    with Source(path) as source, pytest.raises(SpecError, match="is damaged"):
        list(source.arrays({"x": ColumnType("int64")}, 100))


@pytest.mark.parametrize(
    ("column", "kind", "match"),
    [
        (pa.array([1, None]), ColumnType("int64"), "empty cells"),
        (pa.array([[1.0], [1.0, 2.0]]), ColumnType("float64", (2,)), "another shape"),
        (pa.array([[1.0, 2.0], None]), ColumnType("float64", (2,)), "empty cells"),
        (pa.array([1.0]), ColumnType("float64", (2,)), "another shape"),
        (pa.array([[[1.0]]]), ColumnType("float64", (1,)), "another shape"),
        (pa.array([[[1], None]]), ColumnType("int64", (2, 1)), "another shape"),
        (pa.array([300]), ColumnType("uint8"), "wrong dtype"),
        (pa.array([1.5]), ColumnType("int64"), "wrong dtype"),
        (pa.array(["a"]), ColumnType("int64"), "wrong dtype|not numbers"),
        (pa.array([1]), ColumnType("string"), "wrong type"),
        (pa.array([1]), ColumnType("image", (1, 1, 3)), "wrong type"),
        (pa.array([{"bytes": None, "path": "x"}]), ColumnType("image", (1, 1, 3)), "not in the f"),
    ],
)
def test_columns_of_another_form_are_refused(tmp_path, column, kind, match):
    path = tmp_path / "one.parquet"
    pq.write_table(pa.table({"x": column}), path)
    with Source(path) as source, pytest.raises(SpecError, match=match):
        list(source.arrays({"x": kind}, 9))


def test_numbers_may_be_stored_wider_than_declared(tmp_path):
    path = tmp_path / "one.parquet"
    pq.write_table(pa.table({"x": pa.array([1, 2], pa.int64()), "y": [0.5, 1.5]}), path)
    with Source(path) as source:
        kinds = {"x": ColumnType("uint8"), "y": ColumnType("float32")}
        (back,) = source.arrays(kinds, 9)
    assert back["x"].dtype == np.uint8
    assert back["y"].tolist() == [0.5, 1.5]


def test_a_missing_column_is_named(tmp_path):
    path = stored(ColumnType("int64"), np.arange(2), tmp_path)
    with Source(path) as source, pytest.raises(SpecError, match=r"lacks columns.*\['y'\]"):
        list(source.arrays({"y": ColumnType("int64")}, 9))


def test_pandas_finds_the_index(tmp_path):
    made = parquet.plain({"n": [0, 1], "task": ["a", "b"]}, {"n": "int64", "task": "string"})
    notes = json.loads(parquet.indexed(made, "task").schema.metadata[b"pandas"])
    assert notes["index_columns"] == ["task"]
    assert [c["name"] for c in notes["columns"]] == ["n", "task"]
