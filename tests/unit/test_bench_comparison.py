"""What a comparison prints and keeps."""

import re
from io import StringIO

from rich.console import Console

from tests.bench.__main__ import SCENARIOS
from tests.bench.comparison_result import Result, Sample, table
from tests.bench.contestants import FLOOR, OURS, PEERS
from tests.conftest import ROOT


def printed(result: Result) -> str:
    output = StringIO()
    Console(file=output, width=240).print(table(result))
    return output.getvalue()


def rounds(name: str, *rates: float) -> list[Sample]:
    return [
        sample
        for number, rate in enumerate(rates)
        for sample in (
            Sample.of(name, number, 1, [0.004, 0.005, 0.006], 1, 0.6),
            Sample(name, number, 64, 9, rate, 1, 2, 3),
        )
    ]


def test_a_row_has_the_median_of_its_rounds_their_spread_and_its_ratios() -> None:
    result = Result(keeps={OURS.name: "everything", FLOOR.name: "little"})
    result.samples = [*rounds(OURS.name, 300, 600, 500), *rounds(FLOOR.name, 250, 250, 250)]
    row = next(line for line in printed(result).splitlines() if OURS.name in line)
    assert "500 (300-600)" in row
    assert "2.00" in row
    assert "5.0 (5.0-5.0)" in row


def test_a_contestant_that_is_missing_says_why_and_the_rest_goes_on() -> None:
    result = Result(keeps={OURS.name: "everything", "a peer": "little"}, missing={"a peer": "no server"})
    result.samples = rounds(OURS.name, 300)
    assert "missing: no server" in printed(result)
    assert OURS.name in printed(result)


def test_the_samples_of_all_rounds_are_kept() -> None:
    result = Result(keeps={OURS.name: "everything"}, samples=rounds(OURS.name, 300, 400))
    kept = [each["turns_per_second"] for each in result.as_json()["samples"] if each["in_flight"] == 64]
    assert kept == [300, 400]


def test_the_readme_names_every_scenario_and_no_other() -> None:
    readme = (ROOT / "tests" / "bench" / "README.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", readme.split("## The scenarios")[1], re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`([\w-]+)`", row)} == set(SCENARIOS)


def test_every_peer_with_packages_of_its_own_has_its_lock() -> None:
    scripts = {each.name for each in PEERS.glob("*.py") if each.read_text().startswith("# /// script")}
    assert scripts == {each.name.removesuffix(".lock") for each in PEERS.glob("*.lock")}
