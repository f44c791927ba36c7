"""Drafts, invoices, credit notes and credits: what is asked for, decided on the ledger and put on the log."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from schemas.billing import CreditNoteTerms, FinalizeInvoice, InvoiceDraft, UnpricedUsage
from schemas.invoices import Bill, CreditGranted, CreditTerms
from schemas.plans import Currency, Period, PlanSpec
from services.runtime.pricing.book import PriceBook
from services.runtime.pricing.cells import Cell
from services.usage.billing.adjusting import adjusting_head
from services.usage.billing.adjustments import RatedPeriod, differences, within
from services.usage.billing.bill import Account, build_adjusted, build_bill
from services.usage.billing.catalog import PlanCatalog
from services.usage.billing.credits import Balance, in_order
from services.usage.billing.errors import BillingRefusedError
from services.usage.billing.invoice_log import InvoiceLog
from services.usage.billing.ledger import Document, Ledger, credit_note_id_of
from services.usage.billing.periods import ends_at, period_of, starts_at
from services.usage.billing.rating import PeriodUsage, rate_period, unpriced_usage
from services.usage.queries import UsageQuery
from services.usage.retention import Retention
from services.usage.store import UsageStore


class PriceSource(Protocol):
    def book(self) -> PriceBook: ...

    async def catch_up(self) -> None: ...


class PlanSource(Protocol):
    def catalog(self) -> PlanCatalog: ...

    async def catch_up(self) -> None: ...


class Progress(Protocol):
    async def positions(self) -> list[int]: ...

    async def read_all(self) -> list[int]: ...


def _now() -> datetime:
    return datetime.now(UTC)


class Billing:
    """Every method raises UnavailableError while Kafka or ClickHouse is down, BillingRefusedError for what can't be."""

    def __init__(
        self,
        store: UsageStore,
        invoices: InvoiceLog,
        *,
        prices: PriceSource,
        plans: PlanSource,
        progress: Progress,
        retention: Retention | None = None,
        now: Callable[[], datetime] = _now,
    ) -> None:
        self._store = store
        self._log = invoices
        self._prices = prices
        self._plans = plans
        self._progress = progress
        self._retention = retention or Retention()
        self._now = now

    async def draft(self, tenant_id: str, period: Period, currency: Currency | None = None) -> InvoiceDraft:
        """The bill of a period as of now, before it is over and after it was invoiced too."""
        ledger, ends = await self._log.ledger(), await self._progress.positions()
        if there := ledger.invoice(tenant_id, period, currency):
            return await self._drafted_again(there, ends)
        return (await self._made(ledger, tenant_id, period, currency, ends)).draft

    async def _drafted_again(self, invoice: Document, ends: Sequence[int]) -> InvoiceDraft:
        """What the period of an invoice comes to by now, by itself: what changes after it is of a later one."""
        plan = self._plans.catalog().plan_of(invoice.tenant_id, invoice.period)
        if plan is None or plan.currency != invoice.currency:
            raise BillingRefusedError(
                "already-finalized",
                f"{invoice.tenant_id} has the invoice {invoice.number} of {invoice.period}, over {invoice.total} "
                f"{invoice.currency}: what changes after it is in the draft of a later month",
            )
        book = self._prices.book()
        used = await self._rows(invoice.tenant_id, invoice.period, book)
        made = await _by_plan(plan, used, book, (), Account(invoiced={}), ends)
        return made.draft.model_copy(update={"finalized_as": invoice.number})

    async def finalize(self, asked: FinalizeInvoice) -> Document:
        """The invoice of a period. There is one: whoever asks again, or at the same time, gets that.

        When the process dies in the middle there is none, or there is this one.
        """
        tenant_id, period, currency = asked.tenant_id, asked.period, asked.currency
        if there := (await self._log.ledger()).invoice(tenant_id, period, currency):
            return there
        if self._now() < ends_at(period):
            raise BillingRefusedError(
                "period-not-over", f"{period} ends at {ends_at(period).isoformat()}: until then there is a draft"
            )
        ends = await self._everything_read()
        async with self._log.writing() as writing:
            if there := writing.ledger.invoice(tenant_id, period, currency):
                return there
            made = await self._made(writing.ledger, tenant_id, period, currency, ends)
            bill = made.bill
            if bill.unpriced_events and not asked.allow_unpriced:
                raise BillingRefusedError(
                    "unpriced-usage",
                    f"nobody knows the price of {bill.unpriced_events} events of {tenant_id} in {bill.currency}: the "
                    "draft lists them; apply prices for them, or say allow_unpriced",
                )
            at = self._now()
            await writing.write(writing.ledger.finalized(bill, at, apart=made.apart), at)
            return _present(writing.ledger.invoice(tenant_id, period, currency))

    async def credit(self, tenant_id: str, number: str, terms: CreditNoteTerms) -> Document:
        """A credit note for an invoice; the one that is there for a key that was used before."""
        await self._everything_read()
        async with self._log.writing() as writing:
            ledger = writing.ledger
            invoice = _document(ledger, tenant_id, number)
            if invoice.document_id != invoice.invoice_id:
                raise _no_such_invoice(number)
            note_id = credit_note_id_of(invoice.invoice_id, terms.key, invoice.period)
            if there := ledger.noted(note_id, reason=terms.reason, amount=terms.amount):
                return there
            at = self._now()
            if terms.amount is not None:
                note = ledger.goodwill(invoice, terms.amount, credit_note_id=note_id, reason=terms.reason, at=at)
            else:
                rated = await self._rated_by_rows(tenant_id, invoice.period)
                found = differences([rated], ledger.account(tenant_id).invoiced)
                note = ledger.corrected(invoice, found, credit_note_id=note_id, reason=terms.reason, at=at)
            await writing.write(note, at)
            return _present(ledger.credit_note(note_id))

    async def grant(self, terms: CreditTerms) -> CreditGranted:
        """A grant; the one that is there under its id."""
        async with self._log.writing() as writing:
            at = self._now()
            granted = writing.ledger.granted(terms, at)
            if granted != writing.ledger.grant(terms.tenant_id, terms.grant_id):
                await writing.write(granted, at)
            return granted

    async def balances(self, tenant_id: str, *, after: str | None = None) -> list[Balance]:
        """Every grant of a tenant, in the order in which they are consumed; those behind one of an id."""
        found = in_order((await self._log.ledger()).balances(tenant_id))
        if after is None:
            return found
        for place, each in enumerate(found, 1):
            if each.grant.grant_id == after:
                return found[place:]
        raise BillingRefusedError("no-such-grant", f"there is no grant {after!r} of this tenant: take next_cursor")

    async def documents(self, tenant_id: str, *, before: str | None = None) -> Sequence[Document]:
        """Invoices and credit notes of a tenant, the latest first; those that were written before one of a number."""
        ledger = await self._log.ledger()
        found = list(ledger.documents(tenant_id))
        if before is not None:
            del found[found.index(_document(ledger, tenant_id, before)) :]
        return found[::-1]

    async def document(self, tenant_id: str, number: str) -> Document:
        return _document(await self._log.ledger(), tenant_id, number)

    async def _everything_read(self) -> list[int]:
        await self._prices.catch_up()
        await self._plans.catch_up()
        return await self._progress.read_all()

    async def _made(
        self, ledger: Ledger, tenant_id: str, period: Period, currency: Currency | None, ends: Sequence[int]
    ) -> "_Made":
        """The bill of a period: by its plan, or of adjustments alone where it has none or one in another currency."""
        account = ledger.account(tenant_id)
        catalog = self._plans.catalog()
        plan = catalog.plan_of(tenant_id, period)
        if plan is None or currency not in (None, plan.currency) or ledger.invoice(tenant_id, period):
            earlier = await self._earlier(ledger, tenant_id, period, account)
            found = within(differences(earlier, account.invoiced), account.rooms)
            subscribed = catalog.subscribed(tenant_id, period)
            head = adjusting_head(ledger, tenant_id, period, currency, found, subscribed=subscribed)
            bill = build_adjusted(head, [], earlier=earlier, account=account, usage_ends=ends)
            return _Made(bill, apart=currency is not None)
        book = self._prices.book()
        used = await self._rows(tenant_id, period, book)
        earlier = await self._earlier(ledger, tenant_id, period, account)
        return await _by_plan(plan, used, book, earlier, account, ends)

    async def _earlier(self, ledger: Ledger, tenant_id: str, period: Period, account: Account) -> list[RatedPeriod]:
        before = [each for each in ledger.periods(tenant_id) if each < period and self._keeps(each)]
        return await self._rated(tenant_id, before, account)

    async def _rated(self, tenant_id: str, periods: Sequence[Period], account: Account) -> list[RatedPeriod]:
        """Periods as they are rated now, by their sums, which is quick.

        Where these are not what was invoiced, the rows decide: an invoice is made of rows, and so is what follows it.
        """
        by_sums = await self._rated_by_sums(tenant_id, periods)
        differing = {each.item.period for each in differences(by_sums, account.invoiced)}
        return [
            await self._rated_by_rows(tenant_id, each.period) if each.period in differing else each for each in by_sums
        ]

    async def _rated_by_sums(self, tenant_id: str, periods: Sequence[Period]) -> list[RatedPeriod]:
        book, catalog = self._prices.book(), self._plans.catalog()
        cells = await self._cells_by_month(tenant_id, periods, book)
        used = [PeriodUsage(tenant_id, each, cells[each]) for each in periods]
        return await asyncio.to_thread(lambda: [_rated(catalog, each, book) for each in used])

    async def _rated_by_rows(self, tenant_id: str, period: Period) -> RatedPeriod:
        book, catalog = self._prices.book(), self._plans.catalog()
        used = await self._rows(tenant_id, period, book)
        return await asyncio.to_thread(_rated, catalog, used, book)

    def _keeps(self, period: Period) -> bool:
        kept_from = self._retention.kept_from(self._now())
        return kept_from is None or starts_at(period) >= kept_from

    async def _rows(self, tenant_id: str, period: Period, book: PriceBook) -> PeriodUsage:
        if not self._keeps(period):
            raise BillingRefusedError(
                "usage-not-kept",
                f"usage of {period} is not kept any more: its invoice, where there is one, stays as it is",
            )
        query = UsageQuery(
            tenant_id=tenant_id,
            since=starts_at(period),
            until=ends_at(period),
            limit=1,
            boundaries=book.boundaries(tenant_id),
            from_rows=True,
        )
        return PeriodUsage(
            tenant_id, period, [cell for group in await self._store.query(query) for cell in group.cells]
        )

    async def _cells_by_month(
        self, tenant_id: str, periods: Sequence[Period], book: PriceBook
    ) -> dict[Period, Sequence[Cell]]:
        found: dict[Period, Sequence[Cell]] = dict.fromkeys(periods, ())
        if not periods:
            return found
        since, until = starts_at(periods[0]), ends_at(periods[-1])
        query = UsageQuery(
            tenant_id=tenant_id,
            bucket="month",
            since=since,
            until=until,
            limit=12 * (until.year - since.year + 1),
            boundaries=book.boundaries(tenant_id),
        )
        for group in await self._store.query(query):
            month = period_of(datetime.fromisoformat(group.group["bucket"] or ""))
            if month in found:
                found[month] = group.cells
        return found


@dataclass(frozen=True, slots=True)
class _Made:
    """A bill, what has no price in it, and whether it is beside the one of its period."""

    bill: Bill
    unpriced: Sequence[UnpricedUsage] = ()
    apart: bool = False

    @property
    def draft(self) -> InvoiceDraft:
        return InvoiceDraft(**self.bill.model_dump(), unpriced=list(self.unpriced))


async def _by_plan(
    plan: PlanSpec,
    used: PeriodUsage,
    book: PriceBook,
    earlier: Sequence[RatedPeriod],
    account: Account,
    ends: Sequence[int],
) -> _Made:
    """The book is the one whose boundaries the cells of the usage have: no other one may rate them."""
    bill = await asyncio.to_thread(build_bill, plan, used, book, earlier=earlier, account=account, usage_ends=ends)
    return _Made(bill, unpriced_usage(plan, used, book))


def _rated(catalog: PlanCatalog, used: PeriodUsage, book: PriceBook) -> RatedPeriod:
    """No lines where the tenant has no plan any more."""
    plan = catalog.plan_of(used.tenant_id, used.period)
    if plan is None:
        return RatedPeriod(used.period)
    return RatedPeriod(used.period, plan.currency, rate_period(plan, used, book))


def _document(ledger: Ledger, tenant_id: str, number: str) -> Document:
    document = ledger.numbered(number)
    if document is None or document.tenant_id != tenant_id:
        raise _no_such_invoice(number)
    return document


def _no_such_invoice(number: str) -> BillingRefusedError:
    return BillingRefusedError("no-such-invoice", f"there is no invoice {number!r} of this tenant")


def _present(document: Document | None) -> Document:
    """What was written just now."""
    assert document is not None
    return document
