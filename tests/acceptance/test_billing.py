"""From usage that another system has written to an invoice that can be printed, by the commands and over HTTP."""

import asyncio
import csv
import io
import json
from pathlib import Path
from uuid import uuid4

import pytest

from schemas.invoices import content_hash
from tests.support.installation import Installation

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="session")]

PLANS = """
name: {name}
currency: EUR
from_period: 2026-01
charges:
- {{name: base, scheme: flat, amount: 9}}
- name: tokens
  scheme: graduated
  usage: {{kind: completion}}
  meter: tokens
  per: 1000
  tiers: [{{up_to: 10000, unit_price: 0.5}}]
  beyond: {{unit_price: 0.1}}
---
name: {name}
tenant_id: {name}
plan: {name}
from_period: 2026-01
"""


async def use(turnlog: Installation, tenant: str, tokens: int, day: str) -> None:
    event = {
        "usage_id": uuid4().hex,
        "tenant_id": tenant,
        "thread_id": "elsewhere",
        "kind": "completion",
        "model": "theirs",
        "output_tokens": tokens,
        "occurred_at": f"{day}T12:00:00Z",
    }
    await turnlog.log.publish("usage", event)


async def say(turnlog: Installation, *command: str) -> str:
    finished = await turnlog.run(*command)
    assert finished.code == 0, finished.errors
    return finished.output


async def test_a_month_is_invoiced_corrected_and_printed(turnlog: Installation, tmp_path: Path) -> None:
    tenant = f"acme-{uuid4().hex[:8]}"
    mine = ("--tenant", tenant)
    file = tmp_path / "plans.yaml"
    file.write_text(PLANS.format(name=tenant))
    assert f"applied {tenant} version " in await say(turnlog, "plans", "apply", str(file))
    assert f"subscription to {tenant}" in await say(turnlog, "plans", "list")
    await say(turnlog, "credits", "grant", "welcome", "5.00", "EUR", *mine, "--expires", "2099-12-31")
    (grant,) = (await turnlog.get(f"/v1/credits?tenant_id={tenant}"))["items"]
    assert grant["grant"]["expires_at"] == "2099-12-31T00:00:00.000000Z"
    await use(turnlog, tenant, 12_000, "2026-01-15")

    made = await say(turnlog, "invoices", "finalize", "2026-01", *mine)
    number = made.partition(":")[0]
    assert made.startswith(f"{number}: 9.20 EUR, SHA-256 ")  # 9 + 10 * 0.5 + 2 * 0.1, less 5
    assert await say(turnlog, "invoices", "finalize", "2026-01", *mine) == made
    assert "holds" in await say(turnlog, "invoices", "show", number, *mine)
    assert "0.00" in await say(turnlog, "credits", "list", *mine)

    written = await say(turnlog, "invoices", "export", number, *mine)
    (on_the_log,) = [each for each in await turnlog.log.events("invoices") if each.get("number") == number]
    document = json.loads(written)
    assert document == {name: on_the_log[name] for name in document}
    assert content_hash(document) == document["sha256"]
    assert document == await turnlog.get(f"/v1/invoices/{number}?tenant_id={tenant}")
    rows = csv.DictReader(io.StringIO(await say(turnlog, "invoices", "export", number, *mine, "--format", "csv")))
    assert [row["amount"] for row in rows] == ["9.00", "5.20", "-5.00"]
    page = await say(turnlog, "invoices", "export", number, *mine, "--format", "html")
    assert f"<h1>Invoice {number}</h1>" in page

    await use(turnlog, tenant, 3_000, "2026-01-31")
    async with asyncio.timeout(30):
        while "adjustment: tokens" not in (draft := await say(turnlog, "invoices", "draft", "2026-02", *mine)):
            pass
    assert "0.30" in draft
    note = await say(turnlog, "invoices", "credit", number, *mine, "--reason", "Outage", "--amount", "2", "--key", "k")
    assert note.partition(": ")[2].startswith("-2.00 EUR")
    assert (
        await say(turnlog, "invoices", "credit", number, *mine, "--reason", "Outage", "--amount", "2", "--key", "k")
        == note
    )
    listed = await say(turnlog, "invoices", "list", *mine)
    assert number in listed
    assert note.partition(":")[0] in listed


async def test_what_is_refused_is_one_line_and_a_wrong_file_of_plans_changes_nothing(
    turnlog: Installation, tmp_path: Path
) -> None:
    nobody = f"nobody-{uuid4().hex[:8]}"
    refused = await turnlog.run("invoices", "draft", "2026-01", "--tenant", nobody)
    assert refused.code == 2
    assert f"{nobody} has no plan in 2026-01" in refused.errors
    wrong = await turnlog.run("invoices", "finalize", "January", "--tenant", nobody)
    assert (wrong.code, "period: " in wrong.errors) == (2, True)

    file = tmp_path / "plans.yaml"
    fine = f"name: {nobody}\nfrom_period: 2026-01\ncharges: []\n"
    file.write_text(f"{fine}---\nname: bad\ncharges: [{{name: a, scheme: flat, amuont: 1}}]\n")
    bad = await turnlog.run("plans", "apply", str(file))
    assert bad.code == 2
    for field in ("document 2: ", "from_period: ", "amuont: "):
        assert field in bad.errors
    assert nobody not in (await turnlog.run("plans", "list")).output
