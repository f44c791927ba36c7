"""Whether usage holds every fact of the log once, and nothing else, and its sums are those of the facts.

The hash of a bucket of offsets is worked out from the log and compared with the table's. Where it differs the rows are
looked at. A fact that was written again is in the table where it was read first: it is missed at the other places of
the log, and is found by its id. Where its values differ, it is a conflict. Then the table's sums are compared with its
rows.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.http import (
    AuditedFacts,
    AuditedRows,
    UsageConflicts,
    UsageDigest,
    UsageDigests,
    UsageEnds,
    UsageImbalance,
    UsageImbalances,
)
from schemas.ids import EPOCH, microseconds
from schemas.topics import USAGE
from services.cli.audit.log import AuditedTopic
from services.cli.audit.report import LISTED, Conflict, Difference, Findings, Problem
from services.cli.audit.service import AuditedService
from services.runtime.records import ProjectedRecord
from services.runtime.settings import RuntimeSettings
from services.usage.fingerprint import BUCKET, COLUMNS, Values, hash_of, values_of
from services.usage.rows import row_of

LAST = 2**62
FACTS = 1000
_FACT = (COLUMNS.index("tenant_id"), COLUMNS.index("usage_id"))
_THREAD = COLUMNS.index("thread_id")
_TIME = COLUMNS.index("occurred_at")
_WIDTH = len(COLUMNS)


@dataclass(slots=True)
class _Sum:
    rows: int = 0
    hash: int = 0


async def audit_usage(settings: RuntimeSettings) -> Findings:
    """Raises UnavailableError when Kafka or usage does not answer, or usage does not catch up with the log."""
    async with AuditedTopic(settings, USAGE, row_of) as log:
        return await _UsageAudit(log, AuditedService(settings, "usage")).run()


class _UsageAudit:
    def __init__(self, log: AuditedTopic, service: AuditedService) -> None:
        self._log = log
        self._service = service
        self._ends: list[int] = []
        self._kept_from = 0
        self._compared = 0
        self._total = 0
        self._differences: list[Difference] = []
        self._conflicts: list[Conflict] = []
        self._conflicting = 0
        self._noted: set[tuple[int, int]] = set()

    async def run(self) -> Findings:
        self._ends = await self._log.ends()
        answer = await self._service.ask(UsageDigests, "POST", "/audit/digests", UsageEnds(ends=self._ends))
        self._kept_from = microseconds(answer.kept_from or EPOCH)
        noted = await self._service.ask(UsageConflicts, "GET", "/audit/conflicts")
        self._noted = {each.refused_at for each in noted.items}
        for partition in sorted({each.partition for each in answer.items if each.beyond}):
            await self._compare_beyond(partition)
        stored = {(each.partition, each.first): each for each in answer.items if not each.beyond}
        for partition, end in enumerate(self._ends):
            await self._compare_partition(partition, end, stored)
        for each in (await self._service.ask(UsageImbalances, "GET", "/audit/imbalances")).items:
            self._add_imbalance(each)
        return Findings(
            store="usage",
            partitions=self._log.partitions,
            events=self._log.events,
            rejected=self._log.rejected,
            compared=self._compared,
            total=self._total,
            differences=self._differences,
            conflicts=self._conflicts,
            conflicting=self._conflicting,
        )

    async def _compare_partition(self, partition: int, end: int, stored: dict[tuple[int, int], UsageDigest]) -> None:
        sums: dict[int, _Sum] = defaultdict(_Sum)
        async for events in self._log.events_of(partition, 0, end, counted=True):
            for each in filter(self._is_kept, events):
                bucket = sums[each.offset // BUCKET * BUCKET]
                bucket.rows += 1
                bucket.hash ^= hash_of(values_of(partition, each.offset, each.event))
        for first in sorted(sums.keys() | {first for number, first in stored if number == partition}):
            digest = stored.get((partition, first))
            expected = sums[first]
            self._compared += expected.rows
            if (expected.rows, expected.hash) != ((digest.rows, digest.hash) if digest else (0, 0)):
                await self._compare_rows(partition, first, min(first + BUCKET, end))

    async def _compare_rows(self, partition: int, first: int, end: int) -> None:
        expected = await self._expected(partition, first, end)
        missed: list[Values] = []
        stored = {_key(row): row for row in await self._rows(partition, first, end)}
        for key, values in expected.items():
            row = stored.pop(key, None)
            if row is None:
                missed.append(values)
            elif row != values:
                self._add("different", values, _differing(values, row))
        for row in stored.values():
            self._add("unexpected", row, "")
        for begin in range(0, len(missed), FACTS):
            await self._look_elsewhere(missed[begin : begin + FACTS])

    async def _look_elsewhere(self, missed: Sequence[Values]) -> None:
        """Facts that are not where the log has them: written again at another place, or missing."""
        asked = AuditedFacts(facts=[(str(each[_FACT[0]]), str(each[_FACT[1]])) for each in missed])
        answer = await self._service.ask(AuditedRows, "POST", "/audit/facts", asked)
        found = {tuple(row[index] for index in _FACT): tuple(row) for row in answer.items}
        for values in missed:
            row = found.get(tuple(values[index] for index in _FACT))
            if row is None and _place(values) in self._noted:
                continue  # what it contradicts is not kept any more
            if row is None or not await self._is_on_the_log(row):
                self._add("missing", values, "")
            elif row[:-2] != values[:-2]:
                self._add_conflict(row, values)

    async def _is_on_the_log(self, row: Values) -> bool:
        """Rows before the end are compared where they are; one from behind it is looked up."""
        partition, offset = _place(row)
        if partition >= self._log.partitions:
            return False
        if offset < self._ends[partition]:
            return True
        record = await self._log.event_at(partition, offset)
        return record is not None and values_of(partition, offset, record.event) == row

    async def _compare_beyond(self, partition: int) -> None:
        """Rows from behind the end are new ones; what is not on the log even now is from nowhere."""
        first = self._ends[partition] if partition < self._log.partitions else 0
        rows = await self._rows(partition, first, LAST)
        end = (await self._log.ends())[partition] if partition < self._log.partitions else 0
        expected = await self._expected(partition, first, end) if end > first else {}
        for row in rows:
            values = expected.get(_key(row))
            if values is None:
                self._add("unexpected", row, "the log has nothing there")
            elif values != row:
                self._add("different", values, _differing(values, row))

    async def _expected(self, partition: int, first: int, end: int) -> dict[Values, Values]:
        rows: dict[Values, Values] = {}
        async for events in self._log.events_of(partition, first, end):
            for each in filter(self._is_kept, events):
                values = values_of(partition, each.offset, each.event)
                rows[_key(values)] = values
        return rows

    async def _rows(self, partition: int, first: int, end: int) -> list[Values]:
        answer = await self._service.ask(AuditedRows, "GET", "/audit/rows", partition=partition, first=first, end=end)
        return [tuple(row) for row in answer.items if int(row[_TIME] or 0) >= self._kept_from]

    def _is_kept(self, read: ProjectedRecord) -> bool:
        return read.event[_TIME] >= self._kept_from

    def _add(self, problem: Problem, values: Values, detail: str) -> None:
        self._total += 1
        if len(self._differences) < LISTED:
            partition, offset = _place(values)
            self._differences.append(
                Difference(
                    problem=problem,
                    record=self._log.position(partition, offset),
                    what=f"usage {values[_FACT[1]]}",
                    tenant_id=values[_FACT[0]] or "",
                    thread_id=values[_THREAD],
                    detail=detail,
                )
            )

    def _add_imbalance(self, found: UsageImbalance) -> None:
        self._total += 1
        if len(self._differences) < LISTED:
            self._differences.append(
                Difference(
                    problem="unbalanced",
                    what=f"{found.table} {found.starts}",
                    tenant_id=found.tenant_id,
                    detail=f"{found.events:+} events, {found.input_tokens:+} input tokens, "
                    f"{found.output_tokens:+} output tokens beside its rows, of {found.group}",
                )
            )

    def _add_conflict(self, kept: Values, refused: Values) -> None:
        self._conflicting += 1
        if len(self._conflicts) < LISTED:
            pairs = zip(COLUMNS[:-2], kept, refused, strict=False)
            self._conflicts.append(
                Conflict(
                    usage_id=refused[_FACT[1]] or "",
                    tenant_id=refused[_FACT[0]] or "",
                    kept=self._log.position(*_place(kept)),
                    refused=self._log.position(*_place(refused)),
                    detail=", ".join(f"{name} {one!r}, not {other!r}" for name, one, other in pairs if one != other),
                    recorded=_place(refused) in self._noted,
                )
            )


def _place(values: Values) -> tuple[int, int]:
    return int(values[_WIDTH - 2] or 0), int(values[_WIDTH - 1] or 0)


def _key(values: Values) -> Values:
    """The fact and where it is from."""
    return (values[_FACT[0]], values[_FACT[1]], values[_WIDTH - 1])


def _differing(expected: Values, stored: Values) -> str:
    pairs = zip(COLUMNS, expected, stored, strict=True)
    return ", ".join(f"{name}: the log has {one!r}, usage {other!r}" for name, one, other in pairs if one != other)
