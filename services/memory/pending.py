"""The answer that an open turn is working on, as a message that is not written yet. Pure."""

from collections.abc import Sequence

from schemas.http import MessageView
from schemas.ids import message_id_of
from schemas.journal import LAST_POSITION
from services.memory.projector import TurnView

OPEN_STATUSES = ("open", "waiting")


def pending_answer(turn: TurnView, answers: Sequence[MessageView]) -> MessageView:
    """The next answer of an open turn that has given these, under the id that it is going to have.

    It has no place among the messages yet, so it comes behind them all.
    """
    step = max((each.step for each in answers), default=0) + 1
    return MessageView(
        message_id=message_id_of(turn.turn_id, step, "assistant", 0, opened_at=turn.opened_at),
        thread_id=turn.thread_id,
        tenant_id=turn.tenant_id,
        turn_id=turn.turn_id,
        step=step,
        position=LAST_POSITION,
        role="assistant",
        status="pending",
        parts=[],
        text="",
        agent=turn.agent,
        created_at=turn.opened_at,
    )
