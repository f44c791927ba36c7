"""How the copies of a fork are cut into commands."""

from schemas.prompts import NewMessage
from services.gateway.forks import BATCH_BYTES, BATCH_MESSAGES, batches


def messages(count: int, size: int = 1) -> list[NewMessage]:
    return [NewMessage(message_id=f"m-{number}", role="user", content="x" * size) for number in range(count)]


def test_a_command_carries_no_more_messages_than_one_transaction_should_write() -> None:
    copies = messages(BATCH_MESSAGES * 2 + 1)
    cut = list(batches(copies))
    assert [len(each) for each in cut] == [BATCH_MESSAGES, BATCH_MESSAGES, 1]
    assert [each for batch in cut for each in batch] == copies


def test_large_messages_go_by_their_size_and_the_largest_by_itself() -> None:
    third = BATCH_BYTES // 3
    assert [len(each) for each in batches(messages(5, third))] == [2, 2, 1]
    assert [len(each) for each in batches(messages(2, BATCH_BYTES * 2))] == [1, 1]


def test_nothing_to_copy_is_no_command() -> None:
    assert list(batches([])) == []
