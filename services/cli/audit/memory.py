"""Whether memory holds the documents that the journal leads to, and no others.

A partition at a time: its events are projected to fingerprints, and memory says those of the documents that it has.
Events go on arriving meanwhile, so memory answers from some moment between the end of the projected events and the end
of the log afterwards. What differs is therefore held against every state that it must have had in that time.
"""

import json
from collections.abc import AsyncGenerator, Collection, Mapping
from typing import Any
from uuid import UUID

from pydantic import RootModel

from schemas.http import AuditedDocument, AuditedDocuments, AuditedIds, DocumentFingerprints
from schemas.journal import JournalEvent
from schemas.topics import MESSAGES
from services.cli.audit.expected import Expected, ExpectedDocuments, key_of, point_of
from services.cli.audit.log import AuditedTopic
from services.cli.audit.report import LISTED, Difference, Findings, Problem
from services.cli.audit.service import AuditedService
from services.memory.projector import project
from services.memory.store import Document
from services.runtime.settings import RuntimeSettings

PAGE = 500
"""Documents that memory reads at once: 5 ms, in which the engine in process lets nothing else run."""

LOOKED_UP = 500


class Positions(RootModel[dict[int, int]]):
    """The next offset of each partition that memory has."""


async def audit_memory(settings: RuntimeSettings) -> Findings:
    """Raises UnavailableError when Kafka or memory does not answer, or memory does not catch up with the log."""
    async with AuditedTopic(settings, MESSAGES) as log:
        return await _MemoryAudit(log, AuditedService(settings, "memory")).run()


class _MemoryAudit:
    def __init__(self, log: AuditedTopic, service: AuditedService) -> None:
        self._log = log
        self._service = service
        self._compared = 0
        self._total = 0
        self._differences: list[Difference] = []

    async def run(self) -> Findings:
        for partition, end in enumerate(await self._log.ends()):
            await self._compare_partition(partition, end)
        known = await self._service.ask(Positions, "GET", "/audit/positions")
        for partition in (None, *(each for each in sorted(known.root) if each >= self._log.partitions)):
            async for page in self._pages(partition):
                await self._add_all(page, ExpectedDocuments())
        return Findings(
            store="memory",
            partitions=self._log.partitions,
            events=self._log.events,
            rejected=self._log.rejected,
            compared=self._compared,
            total=self._total,
            differences=self._differences,
        )

    async def _compare_partition(self, partition: int, end: int) -> None:
        expected = ExpectedDocuments()
        await self._project(expected, partition, 0, end)
        suspects: dict[bytes, bytes | None] = {}
        async for page in self._pages(partition, min_offset=end):
            same: list[bytes] = []
            for key, fingerprint in page.items():
                must = expected.get(key)
                if must is not None and must.fingerprint == fingerprint:
                    same.append(key)
                else:
                    suspects[key] = fingerprint
            expected.drop(same)
            self._compared += len(page)
        suspects |= {key: None for key in expected.keys() if key not in suspects}  # noqa: SIM118
        if suspects:
            expected.watch(suspects)
            now = (await self._log.ends())[partition]
            await self._project(expected, partition, end, now)
            differing = {key: each for key, each in suspects.items() if each not in expected.states(key)}
            await self._add_all(differing, expected, partition)

    async def _project(self, expected: ExpectedDocuments, partition: int, first: int, end: int) -> None:
        async for events in self._log.events_of(partition, first, end, counted=True):
            for each in events:
                expected.apply(each.offset, each.event)

    async def _pages(self, partition: int | None, *, min_offset: int = 0) -> AsyncGenerator[Mapping[bytes, bytes]]:
        """Fingerprints of memory's documents by id."""
        asked: dict[str, Any] = {"limit": PAGE}
        if partition is not None:
            asked |= {"partition": partition, "min_offset": min_offset}
        while True:
            answer = await self._service.ask(DocumentFingerprints, "GET", "/audit/documents", **asked)
            if not answer.items:
                return
            yield {key_of(point): bytes.fromhex(fingerprint) for point, fingerprint in answer.items}
            asked["after"] = answer.items[-1][0]

    async def _stored(self, keys: Collection[bytes]) -> dict[bytes, AuditedDocument]:
        points, found = [UUID(bytes=key) for key in sorted(keys)], dict[bytes, AuditedDocument]()
        for begin in range(0, len(points), LOOKED_UP):
            asked = AuditedIds(point_ids=points[begin : begin + LOOKED_UP])
            answer = await self._service.ask(AuditedDocuments, "POST", "/audit/documents", asked)
            found |= {key_of(each.point_id): each for each in answer.items}
        return found

    async def _add_all(
        self, differing: Mapping[bytes, bytes | None], expected: ExpectedDocuments, partition: int | None = None
    ) -> None:
        """Reports documents, but for one that another partition has written since and that is compared there."""
        stored = await self._stored(differing)
        for key in sorted(differing):
            must, found = expected.get(key), stored.get(key)
            if found is not None and partition is not None and found.partition not in (partition, None):
                continue
            self._total += 1
            if len(self._differences) < LISTED:
                problem: Problem = "missing" if differing[key] is None else "different" if must else "unexpected"
                self._differences.append(await self._difference(problem, key, must, found, expected, partition))

    async def _difference(
        self,
        problem: Problem,
        key: bytes,
        must: Expected | None,
        found: AuditedDocument | None,
        expected: ExpectedDocuments,
        partition: int | None,
    ) -> Difference:
        document, record, tenant_id = None, None, found.tenant_id if found else ""
        if must is not None and partition is not None:
            record = self._log.position(partition, must.offset)
            event = await self._log.event_at(partition, must.offset)
            document = None if event is None else _written(key, event.offset, event.event)
            tenant_id = "" if event is None else event.event.tenant_id
        body = expected.body(key) or (document.body if document else None)
        names: dict[str, Any] = json.loads(body or (found.body if found else "{}"))
        kind = must.kind if must is not None else found.kind if found is not None else "document"
        return Difference(
            problem=problem,
            record=record,
            what=f"{kind} {names.get(f'{kind}_id', point_of(key))}",
            tenant_id=tenant_id,
            thread_id=names.get("thread_id"),
            detail=_differing(body, found.body) if problem == "different" and found and body else "",
        )


def _written(key: bytes, offset: int, event: JournalEvent) -> Document | None:
    """What an event writes by itself; for a turn that is closed that is nothing."""
    changes = project([(offset, event)], {})
    return next((each for each in changes.upserts if each.point_id == point_of(key)), None)


def _differing(expected: str, stored: str) -> str:
    try:
        one, other = json.loads(expected), json.loads(stored)
        names = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    except (ValueError, TypeError, AttributeError):
        return "its body is no JSON object"
    return f"{', '.join(names)} differ" if names else "the fields that it is found by differ"
