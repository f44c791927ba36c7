"""How long chaos lasts and what it is drawn from.

uv run pytest tests/chaos --chaos-minutes 60 --chaos-seed random
uv run pytest tests/chaos --chaos-seed 4711        the plan of a run that failed, again
"""

import secrets

import pytest

MINUTES = 2.0
"""Of prompts and faults, in `make test`; starting, settling and checking come on top."""

SEED = 99
"""In `make test` every commit lives through the same plan; `make chaos` draws another one each time."""

SPARE_SECONDS = 600
"""For all but the chaos itself, and again a quarter of that for what it leaves to be done."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-minutes", type=float, default=MINUTES, help="how long prompts and faults go on")
    parser.addoption("--chaos-seed", default=str(SEED), help="what the plan is drawn from: a number, or `random`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The chaos tests' own time limit."""
    for item in items:
        if item.get_closest_marker("chaos") is not None:
            item.add_marker(pytest.mark.timeout(SPARE_SECONDS + 75 * _minutes(config)))


@pytest.fixture
def chaos_minutes(request: pytest.FixtureRequest) -> float:
    return _minutes(request.config)


@pytest.fixture
def chaos_seed(request: pytest.FixtureRequest) -> int:
    seed = str(request.config.getoption("--chaos-seed", default=SEED))
    return secrets.randbelow(1_000_000) if seed == "random" else int(seed)


def _minutes(config: pytest.Config) -> float:
    """pytest knows the options only when it is called for this folder."""
    return config.getoption("--chaos-minutes", default=MINUTES)
