"""Whether two documents are the same, told by 16 bytes."""

import hashlib
import json

from services.memory.store import Document

_ENCODER = json.JSONEncoder(ensure_ascii=False)


def fingerprint(document: Document) -> bytes:
    """Of everything that can be read of a document; what it is searched by follows from that."""
    content = (document.kind, document.tenant_id, sorted(document.fields.items()), document.body)
    return hashlib.sha256(_ENCODER.encode(content).encode()).digest()[:16]
