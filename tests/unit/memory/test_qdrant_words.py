"""How a document lies in the engine in process."""

from hypothesis import given
from hypothesis import strategies as st

from services.memory.qdrant_words import WORDS, document_of, payload_of, word
from services.memory.store import INTEGER_FIELDS, KEYWORD_FIELDS, Document

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = sorted({*KEYWORD_FIELDS, "calls"} - {"kind", "tenant_id"})
FIELDS = st.dictionaries(st.sampled_from(NAMES), TEXTS | st.lists(TEXTS, max_size=3))
NUMBERS = st.dictionaries(st.sampled_from(INTEGER_FIELDS), st.integers(0, 2**53))


@given(partition=st.integers(0, 10_000), tenant=TEXTS, fields=FIELDS, numbers=NUMBERS, body=TEXTS)
def test_a_document_is_read_as_it_was_written(
    partition: int, tenant: str, fields: dict[str, str | list[str]], numbers: dict[str, int], body: str
) -> None:
    written = Document("id", "message", tenant, {**fields, **numbers}, body, "a text", partition)
    read = document_of("id", payload_of(partition, written))
    assert read == Document("id", "message", tenant, {**fields, **numbers}, body, "", partition)


@given(value=TEXTS)
def test_no_value_looks_like_two_words_or_another(value: str) -> None:
    assert word("user_id", value).split() == [word("user_id", value)]
    stored = payload_of(0, Document("id", "thread", "acme", {"user_id": [value, "u-2"]}, "{}"))[WORDS]
    assert stored.split()[-2:] == [word("user_id", value), "user_id=u-2"]
