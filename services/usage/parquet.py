"""Parquet through pyarrow, which comes with chDB."""

from collections.abc import Sequence
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet

from schemas.analytics import UsageRow
from services.usage.export import Column, Kind

_arrow: Any = pyarrow
_parquet: Any = pyarrow.parquet

TYPES: dict[Kind, Any] = {
    "text": _arrow.string(),
    "count": _arrow.int64(),
    "real": _arrow.float64(),
    "amount": _arrow.decimal128(38, 24),
}
"""An amount has at most 24 decimals; one of 10^14 or more would raise, and not be rounded."""


class ParquetWriter:
    """A row group for every block of rows."""

    def __init__(self, file: BinaryIO, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._schema: Any = _arrow.schema([(column.name, TYPES[column.kind]) for column in columns])
        self._file: Any = _parquet.ParquetWriter(file, self._schema, compression="zstd")

    def write(self, rows: Sequence[UsageRow]) -> None:
        arrays = [
            _arrow.array([column.value_of(row) for row in rows], type=TYPES[column.kind]) for column in self._columns
        ]
        self._file.write_table(_arrow.Table.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        self._file.close()
