"""Commands and their options. What they do is in the module of their group."""

import contextlib
import logging
import sys
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console

from infra.local.errors import LocalError
from schemas.base import DEFAULT_TENANT
from schemas.billing import DocumentForm
from services.cli import catalog, dead_letters, doctor, invoices, rebuild, talk, topics, up, usage
from services.cli.audit import command as audit
from services.cli.composition import SERVICES, ServiceName, build_service, settings_of
from services.runtime.errors import TurnlogError
from services.runtime.kafka import KafkaConnectionError
from services.runtime.logs import configure_logs
from services.runtime.service import run_service

app = typer.Typer(
    help="Turnlog: an event-sourced platform for AI agents.", no_args_is_help=True, pretty_exceptions_enable=False
)
topics_app = typer.Typer(help="The topics of the log.", no_args_is_help=True)
agents_app = typer.Typer(help="Agents: apply and list.", no_args_is_help=True)
tools_app = typer.Typer(help="Tools that workers have announced.", no_args_is_help=True)
prices_app = typer.Typer(help="What usage costs: apply and list.", no_args_is_help=True)
budgets_app = typer.Typer(help="What may be spent: apply, list, show what is.", no_args_is_help=True)
plans_app = typer.Typer(help="What customers pay by the month: apply and list.", no_args_is_help=True)
invoices_app = typer.Typer(help="Invoices: draft, finalize, correct, export.", no_args_is_help=True)
credits_app = typer.Typer(help="What is paid in advance or granted.", no_args_is_help=True)
dead_letters_app = typer.Typer(help="Records that nobody could use.", no_args_is_help=True)
app.add_typer(topics_app, name="topics")
app.add_typer(agents_app, name="agents")
app.add_typer(tools_app, name="tools")
app.add_typer(prices_app, name="prices")
app.add_typer(budgets_app, name="budgets")
app.add_typer(plans_app, name="plans")
app.add_typer(invoices_app, name="invoices")
app.add_typer(credits_app, name="credits")
app.add_typer(dead_letters_app, name="dead-letters")

CONFIGURATION_EXIT = 2

TenantOption = Annotated[str, typer.Option("--tenant", help="Whose.")]


def main() -> None:
    """Entry point. An error that Turnlog raises on purpose is one line on standard error and exit code 2."""
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())  # it would add lines of its own to the one
    try:
        app()
    except TurnlogError as error:
        _complain(error)
    except (LocalError, KafkaConnectionError) as error:
        _complain(error)
    except ExceptionGroup as group:
        known = group.subgroup(TurnlogError)
        if known is None:
            raise
        _complain(known.exceptions[0])


def _complain(error: Exception) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"turnlog: {error}", markup=False)
    sys.exit(CONFIGURATION_EXIT)


def _run(work: Coroutine[Any, Any, int | None]) -> None:
    code = uvloop.run(work)
    if code:
        raise typer.Exit(code)


@app.command("up")
def up_command(
    workers: Annotated[int, typer.Option(min=0, help="Agent workers as processes of their own; 0: one in here.")] = 0,
    no_agents: Annotated[bool, typer.Option("--no-agents", help="Start no agents worker at all.")] = False,
) -> None:
    """Runs everything on this machine until Ctrl-C."""
    _run(up.run_up(workers=workers, with_agents=not no_agents))


@app.command("run")
def run_command(service: Annotated[str, typer.Argument(help=f"One of {', '.join(SERVICES)}.")]) -> None:
    """Runs one service in the foreground until Ctrl-C."""
    if service not in SERVICES:
        raise typer.BadParameter(f"expected one of {', '.join(SERVICES)}, got {service!r}")
    name: ServiceName = service
    configure_logs(settings_of(name))
    _run(run_service(partial(build_service, name)))


@app.command("prompt")
def prompt_command(
    text: Annotated[str, typer.Argument(help="What to say.")],
    thread: Annotated[str | None, typer.Option(help="Thread to go on with; a new one by default.")] = None,
    agent: Annotated[str, typer.Option(help="Who answers.")] = "assistant",
    user: Annotated[str | None, typer.Option(help="Who asks.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the terminal event instead of the text.")] = False,
) -> None:
    """Sends a prompt and shows the answer as it is written."""
    _run(talk.prompt(text, thread_id=thread, agent=agent, user_id=user, as_json=as_json))


@app.command("tail")
def tail_command(
    thread: Annotated[str, typer.Argument(help="Thread to watch.")],
    from_start: Annotated[bool, typer.Option("--from-start", help="Begin with everything the log still has.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document a line.")] = False,
) -> None:
    """Shows every event of a thread as it happens."""
    with contextlib.suppress(KeyboardInterrupt):
        _run(talk.tail(thread, from_start=from_start, as_json=as_json))


@app.command("usage")
def usage_command(
    group_by: Annotated[str, typer.Option(help="Dimensions, by commas.")] = "user,model",
    since: Annotated[str | None, typer.Option("--from", help="Time or date, included.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="Time or date, not included.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Show the period before --from beside it.")] = False,
    tenant: TenantOption = DEFAULT_TENANT,
    order_by: Annotated[str, typer.Option(help="tokens, events, cost or price.")] = "tokens",
    form: Annotated[usage.Form, typer.Option("--format", help="How to print; files have every group.")] = "table",
    as_json: Annotated[bool, typer.Option("--json", help="As --format json.")] = False,
) -> None:
    """Sums what was used."""
    asked = usage.Asked(
        tenant_id=tenant, group_by=group_by, since=since, until=until, compare=compare, order_by=order_by
    )
    _run(usage.show(asked, "json" if as_json else form))


@app.command("doctor")
def doctor_command() -> None:
    """Checks what is needed and says what to do about what is missing."""
    _run(doctor.check())


@app.command("audit")
def audit_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compares memory and usage with the log and names what differs; exit code 1 when something does."""
    _run(audit.run(as_json=as_json))


@app.command("rebuild")
def rebuild_command(
    projection: Annotated[rebuild.Projected, typer.Argument(help="memory or usage.", show_default=False)],
) -> None:
    """Builds a projection anew from the log, beside the live one, and switches over. Ctrl-C cancels."""
    _run(rebuild.run(projection))


@topics_app.command("apply")
def topics_apply() -> None:
    """Creates the topics that are missing."""
    _run(topics.apply())


@topics_app.command("list")
def topics_list() -> None:
    """Shows every topic as it should be, and what is not."""
    _run(topics.show())


@agents_app.command("apply")
def agents_apply(file: Annotated[Path, typer.Argument(help="YAML file, one agent a document.")]) -> None:
    """Applies agents; running workers take them up at once."""
    _run(catalog.apply_agents(file))


@agents_app.command("list")
def agents_list() -> None:
    """Lists the agents with their current version."""
    _run(catalog.list_agents())


@tools_app.command("list")
def tools_list() -> None:
    """Lists the tools that agents may name."""
    _run(catalog.list_tools())


@prices_app.command("apply")
def prices_apply(file: Annotated[Path, typer.Argument(help="YAML file, one price a document.")]) -> None:
    """Applies prices; every sum that is asked for from now on follows them, past usage too."""
    _run(catalog.apply_prices(file))


@prices_app.command("list")
def prices_list() -> None:
    """Lists every price that was applied, the latest last."""
    _run(catalog.list_prices())


@budgets_app.command("apply")
def budgets_apply(file: Annotated[Path, typer.Argument(help="YAML file, one budget a document.")]) -> None:
    """Applies budgets; running workers go by them at once."""
    _run(catalog.apply_budgets(file))


@budgets_app.command("list")
def budgets_list() -> None:
    """Lists the budgets that hold now."""
    _run(catalog.list_budgets())


@budgets_app.command("show")
def budgets_show(name: Annotated[str, typer.Argument(help="The budget's name.")]) -> None:
    """Shows what each account of a budget has spent, most first."""
    _run(catalog.show_budget(name))


@plans_app.command("apply")
def plans_apply(
    file: Annotated[Path, typer.Argument(help="YAML file, one plan or subscription a document.")],
) -> None:
    """Applies plans and subscriptions; drafts follow them at once, invoices that are final never."""
    _run(catalog.apply_plans(file))


@plans_app.command("list")
def plans_list() -> None:
    """Lists every plan and subscription that was applied, the latest last."""
    _run(catalog.list_plans())


NumberArgument = Annotated[str, typer.Argument(help="Number of the invoice or credit note, as `list` shows it.")]
PeriodArgument = Annotated[str, typer.Argument(help="A month, such as 2026-01.")]


@invoices_app.command("list")
def invoices_list(tenant: TenantOption = DEFAULT_TENANT) -> None:
    """Lists invoices and credit notes, the latest first."""
    _run(invoices.listing(tenant))


@invoices_app.command("show")
def invoices_show(number: NumberArgument, tenant: TenantOption = DEFAULT_TENANT) -> None:
    """Shows an invoice or a credit note; exit code 1 when it is not what its hash says."""
    _run(invoices.show(number, tenant))


@invoices_app.command("draft")
def invoices_draft(period: PeriodArgument, tenant: TenantOption = DEFAULT_TENANT) -> None:
    """Shows what a month comes to as of now."""
    _run(invoices.draft(period, tenant))


@invoices_app.command("finalize")
def invoices_finalize(
    period: PeriodArgument,
    tenant: TenantOption = DEFAULT_TENANT,
    allow_unpriced: Annotated[
        bool, typer.Option("--allow-unpriced", help="Leave out usage whose price nobody knows.")
    ] = False,
) -> None:
    """Makes the invoice of a month that is over; the one that is there, if it is."""
    _run(invoices.finalize(period, tenant, allow_unpriced=allow_unpriced))


@invoices_app.command("credit")
def invoices_credit(
    number: NumberArgument,
    reason: Annotated[str, typer.Option(help="What the credit note says.")],
    tenant: TenantOption = DEFAULT_TENANT,
    amount: Annotated[
        str | None, typer.Option(help="Of goodwill; by default what the month comes to less than was invoiced.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="The same key again is the same credit note.")] = None,
) -> None:
    """Takes something off an invoice, with a credit note."""
    _run(invoices.credit(number, tenant, reason=reason, amount=amount, key=key))


@invoices_app.command("export")
def invoices_export(
    number: NumberArgument,
    tenant: TenantOption = DEFAULT_TENANT,
    form: Annotated[DocumentForm, typer.Option("--format", help="json, csv, or html: a page to print.")] = "json",
) -> None:
    """Writes an invoice or a credit note to standard output; as JSON to the byte as it is on the log."""
    _run(invoices.export(number, tenant, form))


@credits_app.command("grant")
def credits_grant(
    grant_id: Annotated[str, typer.Argument(help="An id of your own; the same one again is the same grant.")],
    amount: Annotated[str, typer.Argument(help="Such as 50.00.")],
    currency: Annotated[str, typer.Argument(help="Such as EUR.")],
    tenant: TenantOption = DEFAULT_TENANT,
    expires: Annotated[
        str | None, typer.Option(help="Time with zone, or a date in UTC; it pays for months that begin before.")
    ] = None,
    prepaid: Annotated[bool, typer.Option("--prepaid", help="Paid in advance, not granted.")] = False,
    description: Annotated[str, typer.Option(help="What invoices say.")] = "",
) -> None:
    """Grants a credit, or takes note of what was paid in advance."""
    _run(
        invoices.grant(
            tenant_id=tenant,
            grant_id=grant_id,
            kind="prepaid" if prepaid else "grant",
            description=description,
            currency=currency,
            amount=amount,
            expires_at=expires,
        )
    )


@credits_app.command("list")
def credits_list(tenant: TenantOption = DEFAULT_TENANT) -> None:
    """Lists grants and what is left of each, in the order in which they are consumed."""
    _run(invoices.balances(tenant))


@dead_letters_app.command("list")
def dead_letters_list(
    limit: Annotated[int, typer.Option(min=1, help="How many of the latest.")] = 50,
    topic: Annotated[str | None, typer.Option(help="Only records of this topic.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only those that were given up for this reason.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document a line.")] = False,
) -> None:
    """Lists the latest dead letters."""
    _run(dead_letters.listing(limit, topic=topic, reason=reason, as_json=as_json))


@dead_letters_app.command("show")
def dead_letters_show(
    rejection_id: Annotated[str, typer.Argument(help="Id of the dead letter, as `list` shows it.")],
) -> None:
    """Shows one dead letter: where the record was, why it was given up, and its raw bytes."""
    _run(dead_letters.show(rejection_id))


@dead_letters_app.command("replay")
def dead_letters_replay(
    rejection_ids: Annotated[list[str], typer.Argument(help="Ids of dead letters, as `list` shows them.")],
) -> None:
    """Writes the records of dead letters back to where they came from, for the cause has been mended."""
    _run(dead_letters.replay(rejection_ids))


if __name__ == "__main__":
    main()
