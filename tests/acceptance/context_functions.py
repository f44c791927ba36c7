"""What the context handlers of a test's worker do."""

from typing import Any

from schemas.http import ContextHandlerRequest


def five_hundred_words(request: ContextHandlerRequest) -> Any:
    """Whatever the past is."""
    assert request.messages[-1].reason == "turn"
    return {"messages": [{"role": "system", "content": "word " * 500}]}
