"""What logs say, and what they must not."""

import logging
from collections.abc import Iterator

import pytest
import structlog

from services.runtime.logs import configure_logs
from services.runtime.settings import RuntimeSettings


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    structlog.reset_defaults()


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_traceback_shows_where_it_happened_and_no_values(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(RuntimeSettings.model_validate({"log_format": form}))

    def fail() -> None:
        prompt = "hsifdrows si drowssap ym"[::-1]
        raise ValueError(f"{len(prompt)} characters")

    for log in (structlog.get_logger("ours"), logging.getLogger("of.a.library")):
        try:
            fail()
        except ValueError:
            log.exception("it_broke")
    said = capsys.readouterr().err
    assert said.count("it_broke") == 2
    assert said.count("24 characters") >= 2
    assert said.count("in fail") == 2
    assert "swordfish" not in said
