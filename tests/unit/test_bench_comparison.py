"""What a comparison prints and keeps."""

from io import StringIO

from rich.console import Console

from tests.bench.comparison_result import Result, Sample, table
from tests.bench.contestants import FLOOR, OURS


def printed(result: Result) -> str:
    output = StringIO()
    Console(file=output, width=240).print(table(result))
    return output.getvalue()


def rounds(name: str, *rates: float) -> list[Sample]:
    return [
        sample
        for number, rate in enumerate(rates)
        for sample in (Sample.of(name, number, 1, [0.004, 0.005, 0.006], 1), Sample(name, number, 64, 9, rate, 1, 2))
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
