"""Usage as a file, one row a group: its columns, and CSV. Files are written block by block, whatever their length."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from operator import attrgetter
from typing import BinaryIO, Literal, Protocol

from schemas.analytics import UsageCounts, UsageFigures, UsageRow, UsageUnit
from schemas.base import format_amount
from schemas.prices import Figure
from services.usage.queries import UsageQuery

Value = str | int | float | Decimal | None
Kind = Literal["text", "count", "real", "amount"]

FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""A spreadsheet runs what begins so, the last four in full width: such a text gets an apostrophe before it.
Source: OWASP, CSV injection."""


@dataclass(frozen=True)
class Column:
    """A column of a file; what there is no value for, as money in another currency, is empty."""

    name: str
    kind: Kind
    value_of: Callable[[UsageRow], Value]


class FileWriter(Protocol):
    """Writes rows of the same columns into a file that stays open when the writer is closed."""

    def write(self, rows: Sequence[UsageRow]) -> None: ...

    def close(self) -> None: ...


class CsvWriter:
    """RFC 4180 in UTF-8, with a header. Amounts have all their digits. No text is a formula to a spreadsheet."""

    def __init__(self, file: BinaryIO, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        self._csv = csv.writer(self._text)
        self._csv.writerow([column.name for column in columns])

    def write(self, rows: Sequence[UsageRow]) -> None:
        self._csv.writerows([_cell(column.kind, column.value_of(row)) for column in self._columns] for row in rows)

    def close(self) -> None:
        self._text.detach()


def columns_of(query: UsageQuery, currencies: Iterable[str]) -> list[Column]:
    """Group, then figures, then those of the period before. Money has a column a currency: `cost_USD`.

    Args:
        currencies: that there may be amounts in.
    """
    named = [*(["bucket"] if query.bucket is not None else []), *query.group_by]
    figures = _figures(sorted(currencies), query.per)
    return [
        *(Column(name, "text", lambda row, name=name: row.group[name]) for name in named),
        *(Column(name, kind, value_of) for name, kind, value_of in figures),
        *(
            Column(
                f"previous_{name}", kind, lambda row, of=value_of: None if row.previous is None else of(row.previous)
            )
            for name, kind, value_of in (figures if query.compare else [])
        ),
    ]


def _figures(
    currencies: Sequence[str], per: Sequence[UsageUnit]
) -> list[tuple[str, Kind, Callable[[UsageFigures], Value]]]:
    figures: list[tuple[str, Kind, Callable[[UsageFigures], Value]]] = []
    for name in UsageCounts.model_fields:
        figures.append((name, "real" if name == "latency_ms_avg" else "count", attrgetter(name)))
    for currency in currencies:
        figures.append((f"cost_{currency}", "amount", lambda each, c=currency: each.cost.get(c)))
        figures.append((f"price_{currency}", "amount", lambda each, c=currency: each.price.get(c)))
    figures.append(("unpriced_events", "count", attrgetter("unpriced_events")))
    for unit in per:
        figures.append((f"{unit}s", "count", lambda each, u=unit: each.per[u].count))
        for currency in currencies:
            figures.append((f"cost_{currency}_per_{unit}", "amount", _share("cost", unit, currency)))
            figures.append((f"price_{currency}_per_{unit}", "amount", _share("price", unit, currency)))
    return figures


def _share(figure: Figure, unit: UsageUnit, currency: str) -> Callable[[UsageFigures], Value]:
    return lambda each: getattr(each.per[unit], figure).get(currency)


def _cell(kind: Kind, value: Value) -> str | int | float | None:
    if isinstance(value, Decimal):
        return format_amount(value)
    if kind == "text" and isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return value
