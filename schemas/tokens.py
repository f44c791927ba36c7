"""Tokens where nobody has counted them."""

CHARACTERS_PER_TOKEN = 4
"""Rule of thumb of OpenAI's documentation for English text."""


def estimated_tokens(characters: int) -> int:
    """Tokens of a text of so many characters, rounded up."""
    return -(-characters // CHARACTERS_PER_TOKEN)
