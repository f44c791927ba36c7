"""What an audit may ask of memory."""

from pathlib import Path

import httpx
import pytest

from schemas.http import AuditedDocuments, DocumentFingerprints
from services.memory.app import MemoryService
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.settings import MemorySettings
from tests.unit.memory.journal import Told, added

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_documents_are_named_by_their_ids_and_nothing_else(
    engine: EdgeMemoryStore, told: Told, tmp_path: Path
) -> None:
    await told.tell(added("m-1", "plums"))
    transport = httpx.ASGITransport(MemoryService(MemorySettings(data_dir=tmp_path, http_port=0), store=engine).api)
    async with httpx.AsyncClient(transport=transport, base_url="http://memory") as http:
        listed = DocumentFingerprints.model_validate_json((await http.get("/audit/documents?partition=0")).content)
        ids = [point for point, _ in listed.items]
        asked = await http.post("/audit/documents", json={"point_ids": ids})
        assert {each.point_id for each in AuditedDocuments.model_validate_json(asked.content).items} == {*ids}
        later = await http.get("/audit/documents", params={"partition": 0, "after": ids[0]})
        assert [each[0] for each in later.json()["items"]] == ids[1:]
        for refused in (
            await http.get("/audit/documents", params={"partition": 0, "after": "plums"}),
            await http.post("/audit/documents", json={"point_ids": ["plums"]}),
        ):
            assert (refused.status_code, refused.json()["type"]) == (422, "urn:turnlog:problem:invalid-request")
