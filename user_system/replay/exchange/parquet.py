"""NumPy arrays as Parquet columns and back; the only door to pyarrow.

Columns are typed as the LeRobot datasets type them: a scalar per row, a list of fixed length per
row, or nested lists for more dimensions; images are ``{bytes, path}``. The schema carries the
``huggingface`` metadata, so that readers find shapes and images without asking.

Floats are never dictionary-encoded: NaN, minus zero and every other bit pattern come back as is.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from user_system.core.errors import SpecError
from user_system.core.types import Array

MEGABYTE = 1 << 20
"""What the datasets' limits mean by "mb"."""

IMAGE, TEXT = "image", "string"


@dataclass(frozen=True, slots=True)
class ColumnType:
    """What one cell of a column is: a NumPy dtype's name and a shape, or ``image``, ``string``."""

    dtype: str
    shape: tuple[int, ...] = (1,)
    """``(1,)`` is a plain scalar, as the datasets have it."""


Columns = Mapping[str, ColumnType]
"""Column name -> what a cell is, in order."""


def table(columns: Columns, values: Mapping[str, Any], *, describe: bool = True) -> pa.Table:
    """Return a table of ``values``: arrays ``[N, …]``, or lists of texts or image bytes.

    Args:
        columns: what there is, in order.
        values: by column.
        describe: add the ``huggingface`` metadata.
    """
    arrays = [_encode(kind, values[name]) for name, kind in columns.items()]
    made = pa.table(arrays, names=list(columns))
    if not describe:
        return made
    features = {name: _feature(kind) for name, kind in columns.items()}
    notes = json.dumps({"info": {"features": features}})
    return made.replace_schema_metadata({"huggingface": notes})


def plain(values: Mapping[str, Sequence[Any]], types: Mapping[str, str]) -> pa.Table:
    """Return a table of Python values, with the types that cannot be seen from the values.

    A type is the name of one of Arrow's, after a ``*`` for each list around it: ``*string``.
    """
    kinds = {name: _plain_type(kind) for name, kind in types.items()}
    arrays = [pa.array(column, kinds.get(name)) for name, column in values.items()]
    return pa.table(arrays, names=list(values))


SAMPLES = ("episode_index", "start", "stamps", "values")


def samples(
    episode: int, starts: Sequence[int], stamps: Sequence[Array], values: Sequence[Array]
) -> pa.Table:
    """Return a table of ``SAMPLES``: one row per start, values ``[N, ...]`` flattened."""
    columns = [
        pa.array([episode] * len(starts), pa.int64()),
        pa.array(starts, pa.int64()),
        _listed(stamps),
        _listed(values),
    ]
    return pa.table(columns, names=list(SAMPLES))


def _listed(parts: Sequence[Array]) -> pa.Array:
    offsets = pa.array(np.cumsum([0, *(part.size for part in parts)]), pa.int32())
    flat = pa.array(np.concatenate([part.reshape(-1) for part in parts]))
    return pa.ListArray.from_arrays(offsets, flat)


def indexed(made: pa.Table, column: str) -> pa.Table:
    """Return a table whose ``column`` is its index for pandas."""
    types = {"int64": "int64", "string": "unicode"}
    columns = [
        {
            "name": field.name,
            "field_name": field.name,
            "pandas_type": types[str(field.type)],
            "numpy_type": "int64" if str(field.type) == "int64" else "object",
            "metadata": None,
        }
        for field in made.schema
    ]
    notes = {"index_columns": [column], "column_indexes": [], "columns": columns}
    return made.replace_schema_metadata({"pandas": json.dumps(notes)})


def write(path: Path, made: pa.Table) -> None:
    """Write one table as one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path, compression="snappy", use_dictionary=_texts(made.schema))


_FOOTER_BYTES = 512
"""What a footer says of one column of one row group, generously."""


class FileSeries:
    """Files ``chunk-000/file-000.parquet`` … of one schema, none larger than a limit.

    Each table becomes one row group, and is never split: only a table that is larger than the
    limit by itself makes a file that is.
    """

    def __init__(self, root: Path, *, limit_bytes: int, chunk_files: int):
        self._root, self._limit, self._chunk_files = root, limit_bytes, chunk_files
        self._writer: Any = None
        self._file: Any = None
        self._number = -1
        self._footer = 0

    def write(self, made: pa.Table) -> tuple[int, int]:
        """Append a table; return (chunk, file) of where it went."""
        place = self.reserve(made)
        if self._writer is None:
            self._open(made.schema)
        self._writer.write_table(made, row_group_size=max(1, made.num_rows))
        self._footer += _FOOTER_BYTES * made.num_columns
        return place

    def reserve(self, made: pa.Table) -> tuple[int, int]:
        """Return (chunk, file) of where a table will go if it is the next one."""
        if self._writer is not None:
            size = self._file.tell() + self._footer + _largest(made)
            if size > self._limit:
                self.close()
        return divmod(self._number + (self._writer is None), self._chunk_files)

    def close(self) -> None:
        """Write the footer of the open file; safe to repeat."""
        writer, self._writer = self._writer, None
        file, self._file = self._file, None
        try:
            if writer is not None:
                writer.close()
        finally:
            if file is not None:
                file.close()

    def __enter__(self) -> "FileSeries":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, schema: pa.Schema) -> None:
        self._number += 1
        self._footer = _FOOTER_BYTES * len(schema)
        chunk, file = divmod(self._number, self._chunk_files)
        path = self._root / place(chunk, file, "parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("xb")
        self._writer = pq.ParquetWriter(
            self._file, schema, compression="snappy", use_dictionary=_texts(schema)
        )


def _largest(made: pa.Table) -> int:
    """Return how many bytes a table may take at most: Parquet has no numbers below 32 bits."""
    total = 0
    for column in made.columns:
        kind = column.type
        while _is_list(kind):
            kind = kind.value_type
        small = pa.types.is_integer(kind) and kind.bit_width < 32
        total += column.nbytes * (32 // kind.bit_width if small else 1)
    return int(1.1 * total) + _FOOTER_BYTES * int(made.num_columns)


def place(chunk: int, file: int, kind: str) -> str:
    """Return the name of a numbered file within its series."""
    return f"chunk-{chunk:03d}/file-{file:03d}.{kind}"


# --- reading --------------------------------------------------------------------------------------


class Source:
    """A Parquet file that may be anything.

    Raises:
        SpecError: from all methods; it is no Parquet file, or not the one expected.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            what = f"{path} is not a whole Parquet file"
            raise SpecError(what, got=_line(error), todo="Was its writer closed?") from error
        self.rows: int = self._file.metadata.num_rows
        self.names: tuple[str, ...] = tuple(self._file.schema_arrow.names)

    def close(self) -> None:
        """Close it; safe to repeat."""
        self._file.close()

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def values(self, name: str) -> list[Any]:
        """Return one column as Python values."""
        return [row[name] for rows in self.records([name]) for row in rows]

    def records(self, names: Sequence[str], rows: int = 1024) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows as mappings of Python values, some at a time."""
        for batch in self._batches(names, rows):
            yield batch.to_pylist()

    def arrays(self, columns: Columns, rows: int) -> Iterator[dict[str, Any]]:
        """Yield columns of up to ``rows`` rows: arrays ``[N, …]``, or lists of texts or bytes."""
        for batch in self._batches(list(columns), rows):
            yield {
                name: self._decode(name, kind, batch.column(name)) for name, kind in columns.items()
            }

    def lists(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield each row as scalars, and its list columns as arrays ``[N]``."""
        for batch in self._batches(names, 64):
            for i in range(batch.num_rows):
                row: dict[str, Any] = {}
                for name in names:
                    cell = batch.column(name)[i]
                    listed = pa.types.is_list(cell.type) and cell.is_valid
                    row[name] = (
                        cell.values.to_numpy(zero_copy_only=False) if listed else cell.as_py()
                    )
                yield row

    def _batches(self, names: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        if missing := set(names) - set(self.names):
            raise SpecError(
                f"{self.path} lacks columns", got=sorted(self.names), allowed=sorted(missing)
            )
        try:
            yield from self._file.iter_batches(batch_size=rows, columns=list(names))
        except (OSError, pa.ArrowException) as error:
            raise SpecError(f"{self.path} is damaged", got=_line(error)) from error

    def _decode(self, name: str, kind: ColumnType, column: pa.Array) -> Any:
        at = f"column {name!r} of {self.path}"
        if kind.dtype == IMAGE:
            return _image_bytes(column, at)
        if column.null_count:
            raise SpecError(f"{at} has empty cells", got=column.null_count, allowed=0)
        if kind.dtype == TEXT:
            if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
                raise SpecError(f"{at} has the wrong type", got=column.type, allowed="string")
            return column.to_pylist()
        return _numbers(column, kind, at)


def _numbers(column: pa.Array, kind: ColumnType, at: str) -> Array:
    """Return a column of numbers ``[N, *shape]``; unpacks nested lists, checking every length."""
    rows, flat = len(column), column
    for size in () if kind.shape == (1,) and not _is_list(column.type) else kind.shape:
        if isinstance(flat, pa.ExtensionArray):
            flat = flat.storage
        if not _is_list(flat.type) or flat.null_count:
            raise SpecError(f"{at} has another shape", got=flat.type, allowed=list(kind.shape))
        lengths = pc.list_value_length(flat)
        if len(flat) and not pc.all(pc.equal(lengths, size)).as_py():
            got = pc.min_max(lengths).as_py()
            raise SpecError(f"{at} has another shape", got=got, allowed=list(kind.shape))
        flat = flat.flatten()
    if flat.null_count:
        raise SpecError(f"{at} has empty cells", got=flat.null_count, allowed=0)
    return _cast(flat, kind, at).reshape(rows, *(() if kind.shape == (1,) else kind.shape))


def _cast(flat: pa.Array, kind: ColumnType, at: str) -> Array:
    """Return numbers in the declared dtype; whole numbers stay whole, floats stay floats."""
    wanted = np.dtype(kind.dtype)
    if _is_list(flat.type):
        raise SpecError(f"{at} has another shape", got=flat.type, allowed=list(kind.shape))
    try:
        values: Array = flat.to_numpy(zero_copy_only=False)
    except (pa.ArrowException, ValueError, NotImplementedError) as error:
        raise SpecError(f"{at} is not numbers", got=flat.type, allowed=kind.dtype) from error
    if values.dtype == wanted:
        return values
    whole = values.dtype.kind in "iu" and wanted.kind in "iu"
    fits = whole and (not len(values) or _within(values, np.iinfo(wanted)))
    if not fits and not (values.dtype.kind == wanted.kind == "f"):
        raise SpecError(f"{at} has the wrong dtype", got=values.dtype, allowed=kind.dtype)
    return values.astype(wanted)


def _within(values: Array, limits: Any) -> bool:
    return bool(int(values.min()) >= limits.min and int(values.max()) <= limits.max)


def _image_bytes(column: pa.Array, at: str) -> list[bytes]:
    if not pa.types.is_struct(column.type) or column.type.get_field_index("bytes") < 0:
        raise SpecError(f"{at} has the wrong type", got=column.type, allowed="{bytes, path}")
    data: list[bytes] = column.field("bytes").to_pylist()
    if column.null_count or any(not isinstance(cell, bytes) for cell in data):
        raise SpecError(f"{at} has images that are not in the file", allowed="embedded bytes")
    return data


def _is_list(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    is_a = pa.types
    return bool(is_a.is_list(kind) or is_a.is_large_list(kind) or is_a.is_fixed_size_list(kind))


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)


# --- writing --------------------------------------------------------------------------------------


def _plain_type(kind: str) -> pa.DataType:
    made = getattr(pa, kind.lstrip("*"))()
    for _ in range(kind.count("*")):
        made = pa.list_(made)
    return made


def _encode(kind: ColumnType, values: Any) -> pa.Array:
    if kind.dtype == IMAGE:
        data = pa.array(values, pa.binary())
        return pa.StructArray.from_arrays(
            [data, pa.nulls(len(data), pa.string())], names=["bytes", "path"]
        )
    if kind.dtype == TEXT:
        return pa.array(values, pa.string())
    array = np.ascontiguousarray(values)
    if array.dtype != np.dtype(kind.dtype):
        raise SpecError("column has the wrong dtype", got=array.dtype, allowed=kind.dtype)
    if array.size > np.iinfo(np.int32).max:
        raise SpecError("episode is too large for one table", got=list(array.shape))
    flat = pa.array(array.reshape(-1))
    if kind.shape == (1,):
        return flat
    if len(kind.shape) == 1:
        return pa.FixedSizeListArray.from_arrays(flat, kind.shape[0])
    for size in reversed(kind.shape):
        offsets = np.arange(0, len(flat) + 1, size, dtype=np.int32)
        flat = pa.ListArray.from_arrays(pa.array(offsets), flat)
    return flat


def _feature(kind: ColumnType) -> dict[str, Any]:
    """Return what the ``huggingface`` metadata says of a column."""
    if kind.dtype == IMAGE:
        return {"_type": "Image"}
    value = {"dtype": kind.dtype, "_type": "Value"}
    if kind.dtype == TEXT or kind.shape == (1,):
        return value
    if len(kind.shape) == 1:
        return {"feature": value, "length": kind.shape[0], "_type": "Sequence"}
    shape = list(kind.shape)
    return {"shape": shape, "dtype": kind.dtype, "_type": f"Array{len(shape)}D"}


def _texts(schema: pa.Schema) -> list[str]:
    """Return the columns worth a dictionary: texts, which repeat."""
    return [field.name for field in schema if pa.types.is_string(field.type)]
