"""What an audit asks of memory: which documents it holds, told by their fingerprints. Covers every tenant."""

from typing import Annotated
from uuid import UUID

from fastapi import FastAPI, Query

from schemas.http import AuditedDocument, AuditedDocuments, AuditedIds, DocumentFingerprints
from services.memory.api import WAIT_SECONDS, Progress
from services.memory.fingerprint import fingerprint
from services.memory.store import Document, MemoryStore


def install_audit(app: FastAPI, store: MemoryStore, progress: Progress) -> None:
    """Adds `GET /audit/positions`, `GET` and `POST /audit/documents`."""

    @app.get("/audit/positions")
    async def positions() -> dict[int, int]:
        return dict(await store.positions())

    @app.get("/audit/documents")
    async def fingerprints(
        partition: int | None = None,
        after: UUID | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 500,
        min_offset: int = 0,
    ) -> DocumentFingerprints:
        if partition is not None and min_offset:
            await progress.wait_for(partition, min_offset, WAIT_SECONDS)
        documents = await store.of_partition(partition, after=str(after) if after else None, limit=limit)
        return DocumentFingerprints(items=[(each.point_id, fingerprint(each).hex()) for each in documents])

    @app.post("/audit/documents")
    async def documents(asked: AuditedIds) -> AuditedDocuments:
        found = await store.get([str(each) for each in asked.point_ids])
        return AuditedDocuments(items=[_audited(each) for each in found])


def _audited(document: Document) -> AuditedDocument:
    return AuditedDocument(
        point_id=document.point_id,
        partition=document.partition,
        kind=document.kind,
        tenant_id=document.tenant_id,
        fingerprint=fingerprint(document).hex(),
        body=document.body,
    )
