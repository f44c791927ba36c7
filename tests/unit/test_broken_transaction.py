"""What a transaction that breaks leaves behind."""

import asyncio
import gc
from typing import Any

import pytest

from services.runtime.kafka import ProducerFenced, telling_what_broke


async def test_the_records_of_a_broken_transaction_are_no_news_for_the_log() -> None:
    """A traceback for each took so long that a worker was taken for dead, lost its other partitions, and so on."""
    loop = asyncio.get_running_loop()
    reported: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    sent: list[asyncio.Future[Any]] = [loop.create_future() for _ in range(100)]
    sent[0].set_exception(ProducerFenced())
    with pytest.raises(ProducerFenced), telling_what_broke(sent):
        await sent[0]
    while len(sent) > 1:
        sent.pop().set_exception(ProducerFenced())
    await asyncio.sleep(0)
    gc.collect()
    assert reported == []
