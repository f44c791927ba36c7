"""Rows of usage, by INSERT ... SELECT from numbers(): four a thread and turn, one of them of a tool."""

from typing import Any

EXPRESSIONS = {
    "usage_id": "concat('f', leftPad(toString(number), 12, '0'))",
    "thread_id": "concat('t-', toString(intDiv(number, 4)))",
    "turn_id": "concat('turn-', toString(intDiv(number, 4)))",
    "user_id": "concat('user-', toString(intDiv(number, 400) % 50))",
    "agent": "concat('agent-', toString(intDiv(number, 4) % 3))",
    "agent_version": "'1'",
    "step": "number % 4",
    "attempt": "1",
    "kind": "if(number % 4 = 1, 'tool', 'completion')",
    "provider": "if(kind = 'tool', NULL, 'openai')",
    "model": "if(kind = 'tool', NULL, ['gpt-4o', 'gpt-4o-mini'][number % 2 + 1])",
    "tool": "if(kind = 'tool', 'calculate', NULL)",
    "input_tokens": "if(kind = 'tool', 0, 500 + number % 3000)",
    "cached_input_tokens": "intDiv(input_tokens, 3)",
    "output_tokens": "if(kind = 'tool', 0, 50 + number % 400)",
    "latency_ms": "200 + number % 900",
    "first_token_ms": "if(kind = 'tool', NULL, 80)",
    "outcome": "'ok'",
    "billable": "true",
    "source_offset": "number",
    "block_first": "source_offset",
    "block_last": "source_offset",
    "completes_turn": "number % 4 = 3",
}


def fill(client: Any, rows: int, **expressions: str) -> None:
    """Inserts so many. `expressions`, by column, go before those above; what neither names is zero or NULL."""
    made = EXPRESSIONS | expressions
    selected = ", ".join(f"{expression} AS {column}" for column, expression in made.items())
    client.command(f"INSERT INTO usage_events_a ({', '.join(made)}) SELECT {selected} FROM numbers({rows})")
