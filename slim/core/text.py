"""Text as it can be kept: JSON can name half of a surrogate pair, which is not a character and can be neither written
down nor tokenized."""


def without_surrogates(text: str) -> str:
    """The text with a question mark for every half of a surrogate pair."""
    return text.encode(errors="replace").decode()
