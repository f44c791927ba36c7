"""Tokens where nobody has counted them."""

CHARACTERS_PER_TOKEN = 4
"""Rule of thumb of OpenAI's documentation for English text."""

IMAGE_TOKENS = 765
"""Of an image, whatever its size: one of 1024 x 1024 in high detail, by OpenAI's documentation of GPT-4o."""


def estimated_tokens(characters: int) -> int:
    """Tokens of a text of so many characters, rounded up."""
    return -(-characters // CHARACTERS_PER_TOKEN)
