"""Which rows of a block are stored: a fact counts where it was read first. Pure.

A rollup can take nothing back, so what is stored already is left out before it gets there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.usage.fingerprint import Values, values_of
from services.usage.rows import fact_of
from services.usage.store import Block, Fact, Row


@dataclass(frozen=True, slots=True)
class Stored:
    """A row of the table, and the number of the block that it came in."""

    values: Values
    block_number: int

    @property
    def place(self) -> tuple[int, int]:
        """Partition and offset."""
        return int(self.values[-2] or 0), int(self.values[-1] or 0)


@dataclass(frozen=True, slots=True)
class Conflict:
    """A fact that came again with other values: those are refused, and kept beside the ones that count."""

    kept: Values
    refused: Values


@dataclass(slots=True)
class Sorted:
    """What becomes of the rows of a block. `repeated` were read before with the same values."""

    kept: list[tuple[int, Row]] = field(default_factory=list[tuple[int, Row]])
    conflicts: list[Conflict] = field(default_factory=list[Conflict])
    repeated: int = 0


def sort_out(block: Block, number: int, stored: Mapping[Fact, Stored]) -> Sorted:
    """Decides by what is stored of the block's facts. The same block decides the same however much of it is there.

    Args:
        number: of the block: rows that carry it are the block's own, from a try before.
    """
    if not stored and len({fact_of(row) for _, row in block.rows}) == len(block.rows):
        return Sorted([*block.rows])
    result = Sorted()
    first_here: dict[Fact, tuple[int, Row]] = {}
    for offset, row in block.rows:
        fact, place = fact_of(row), (block.partition, offset)
        known = stored.get(fact)
        own = known is None or (known.block_number, known.place) == (number, place)
        if own and fact not in first_here:
            first_here[fact] = (offset, row)
            continue
        if known is not None and known.place == place:
            continue  # it was read on from before what is stored
        values = values_of(block.partition, offset, row)
        here = first_here.get(fact)
        kept = values_of(block.partition, *here) if here is not None else known.values if known is not None else values
        if kept[:-2] == values[:-2]:
            result.repeated += 1
        else:
            result.conflicts.append(Conflict(kept, values))
    result.kept.extend(first_here.values())
    return result
