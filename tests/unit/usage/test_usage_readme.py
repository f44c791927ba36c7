"""The README of the usage service says what the code does."""

import re
from decimal import Decimal
from pathlib import Path
from typing import get_args

from fastapi.routing import APIRoute

from schemas.analytics import UsageDimension, UsageQuality, UsageRow, UsageUnit
from schemas.invoices import MOST_LINES
from schemas.plans import Charge, Meter, PackageCharge, PlanSpec, SubscriptionSpec, TierPrice, UsageScope
from schemas.prices import PriceSpec, Rates
from services.cli.catalog import read_plans, read_specs
from services.runtime.groups import USAGE_GROUP
from services.runtime.settings import RuntimeSettings
from services.usage.api import MOST_CELLS, UsageParameters
from services.usage.app import UsageService
from services.usage.billing.catalog import PlanCatalog
from services.usage.billing.errors import REFUSALS
from services.usage.blocks import TABLES
from services.usage.fingerprint import BUCKET
from services.usage.queries import Bucket, Order
from services.usage.settings import UsageSettings
from services.usage.store import ReadBounds

README = (Path(__file__).parents[3] / "services" / "usage" / "README.md").read_text()


def rows(name: str) -> list[tuple[str, ...]]:
    """The cells of the table whose first column is called so."""
    found = re.search(rf"^\| {name} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", README, re.MULTILINE)
    assert found, f"no table of {name}"
    return [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in found[1].splitlines()]


def test_the_table_of_settings_is_the_settings_own() -> None:
    fields = {f"TURNLOG_{name.upper()}": field for name, field in UsageSettings.model_fields.items()}
    own = {
        f"TURNLOG_{name.upper()}" for name in UsageSettings.model_fields.keys() - RuntimeSettings.model_fields.keys()
    }
    written = {
        name.strip("`"): (default.strip("`"), meaning.rstrip(" |")) for name, default, meaning in rows("variable")
    }
    assert own <= written.keys()
    for name, said in written.items():
        default = fields[name].default
        shown = "unset" if default in (None, "") else str(default)
        assert said == (shown, fields[name].description)


def test_the_table_of_parameters_has_every_one() -> None:
    written = {name for names, _ in rows("parameter") for name in re.findall(r"`(\w+)`", names)}
    assert written == {field.alias or name for name, field in UsageParameters.model_fields.items()}
    meanings = dict(rows("parameter"))
    assert tuple(re.findall(r"`(\w+)`", meanings["`group_by`"])) == get_args(UsageDimension)
    assert tuple(re.findall(r"`(\w+)`", meanings["`bucket`"]))[:-2] == get_args(Bucket)
    assert tuple(re.findall(r"`(\w+)`", meanings["`per`"])) == get_args(UsageUnit)
    assert tuple(re.findall(r"`(\w+)`", meanings["`order_by`"]))[:-1] == get_args(Order)
    assert f"each takes at most\n  {ReadBounds().export_seconds} s." in README
    assert f"More than {MOST_CELLS:,} cells" in README


def test_the_table_of_quality_has_every_figure() -> None:
    written = {name for names, _ in rows("an item of quality") for name in re.findall(r"`(\w+)`", names)}
    assert written == UsageQuality.model_fields.keys()


async def test_the_table_of_operators_paths_has_every_one(tmp_path: Path) -> None:
    app = UsageService(UsageSettings(data_dir=tmp_path, http_port=0)).api
    paths = {
        f"{method} {route.path}" for route in app.routes if isinstance(route, APIRoute) for method in route.methods
    }
    written = {path for names, _ in rows("operator's path") for path in re.findall(r"`([A-Z]+ /[\w/]+)`", names)}
    assert written == {path for path in paths if "/audit/" in path or "/rebuild" in path}
    assert f"each {BUCKET:,} offsets" in README
    for table in TABLES:
        assert f"`{table}`" in README


def test_the_prices_of_the_example_are_prices(tmp_path: Path) -> None:
    example = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert example
    file = tmp_path / "prices.yaml"
    file.write_text(example[1])
    house, everybody, acme, tools = read_specs(file, PriceSpec)
    assert (house.figure, everybody.markup, acme.currency) == ("cost", Decimal("0.2"), "EUR")
    assert (acme.tiers[0].above_input_tokens, tools.rates.call) == (128_000, 0)
    for name in {*PriceSpec.model_fields, *Rates.model_fields} - {"type"}:
        assert re.search(rf"\b{name}\b", README)


def test_the_plans_of_the_example_are_plans_of_every_scheme(tmp_path: Path) -> None:
    *_, example = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    file = tmp_path / "plans.yaml"
    file.write_text(example)
    pro, acme = read_plans(file)
    assert isinstance(pro, PlanSpec)
    assert isinstance(acme, SubscriptionSpec)
    assert (acme.plan, PlanCatalog([pro, acme]).plan_of("acme", "2026-02")) == (pro.name, pro)
    schemes = [get_args(kind.model_fields["scheme"].annotation)[0] for kind in get_args(get_args(Charge)[0])]
    assert [name.strip("`") for name, _ in rows("scheme")] == schemes
    for name in (*get_args(Meter), *UsageScope.model_fields, *TierPrice.model_fields, *PackageCharge.model_fields):
        assert re.search(rf"\b{name}\b", README)


async def test_the_table_of_billings_paths_has_every_one(tmp_path: Path) -> None:
    app = UsageService(UsageSettings(data_dir=tmp_path, http_port=0)).api
    paths = {
        f"{method} {route.path}" for route in app.routes if isinstance(route, APIRoute) for method in route.methods
    }
    written = {path for names, _ in rows("billing's path") for path in re.findall(r"`([A-Z]+ /[^`]+)`", names)}
    assert written == {path for path in paths if "/invoices" in path or "/credits" in path}
    for refusal in REFUSALS:
        assert f"`{refusal}`" in README
    assert f"at most {MOST_LINES} lines" in README


def test_the_names_in_the_text_are_those_of_the_code() -> None:
    for name in UsageRow.model_fields:
        assert f"`{name}`" in README
    assert f"`source` `{USAGE_GROUP}`" in README
