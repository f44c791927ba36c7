"""Credits: which of them pay for an invoice, and in which order. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from schemas.invoices import MOST_GRANTS, CreditGranted, CreditUse
from schemas.plans import Period
from services.usage.billing.money import rounded
from services.usage.billing.periods import starts_at
from services.usage.pricing.rate import EXACT

_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Balance:
    """A grant and what is left of it."""

    grant: CreditGranted
    left: Decimal

    def pays_for(self, period: Period, currency: str) -> bool:
        """Whether any of it may pay for a period: it must not have expired before the period began."""
        expires_at = self.grant.expires_at or _NEVER
        return self.left > 0 and self.grant.currency == currency and expires_at > starts_at(period)


def in_order(balances: Sequence[Balance]) -> list[Balance]:
    """As they are consumed: what expires first, then what was granted first."""
    return sorted(
        balances,
        key=lambda each: (each.grant.expires_at or _NEVER, each.grant.granted_at, each.grant.grant_id),
    )


def consume(balances: Sequence[Balance], due: Decimal, *, period: Period, currency: str) -> list[CreditUse]:
    """What each grant pays of an amount that is due, in the order in which they are consumed."""
    uses: list[CreditUse] = []
    for balance in in_order([each for each in balances if each.pays_for(period, currency)])[:MOST_GRANTS]:
        amount = min(balance.left, due)
        if amount <= 0:
            break
        due = EXACT.subtract(due, amount)
        uses.append(
            CreditUse(
                grant_id=balance.grant.grant_id,
                description=balance.grant.description,
                expires_at=balance.grant.expires_at,
                amount=rounded(amount, currency),
                left=rounded(EXACT.subtract(balance.left, amount), currency),
            )
        )
    return uses
