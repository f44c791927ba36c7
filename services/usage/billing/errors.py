"""Why billing refuses what it is asked. Asking again does not help until something else has changed."""

from typing import Literal, get_args

from services.runtime.errors import TurnlogError

Refusal = Literal[
    "no-plan",
    "nothing-to-invoice",
    "already-finalized",
    "period-not-over",
    "usage-not-kept",
    "unpriced-usage",
    "no-such-invoice",
    "no-such-grant",
    "nothing-to-credit",
    "credited-too-much",
    "not-payable",
    "other-terms",
]
"""What a client may branch on: the last part of the type of the problem document."""

REFUSALS: tuple[Refusal, ...] = get_args(Refusal)


class BillingRefusedError(TurnlogError):
    """The message says what was expected, what there is, and what to do."""

    code = "billing_refused"

    def __init__(self, refusal: Refusal, message: str) -> None:
        super().__init__(message)
        self.refusal: Refusal = refusal
