"""Whether documents come back from their tokens: what a tokenizer loses is in no model's score.

Bits per byte divide by the bytes of the documents. A tokenizer that lower-cases text, or knows one token for all that
it has not seen, leaves a model less to predict than these bytes, and its score looks better than it is.
"""

from collections.abc import Iterable

BEFORE, AFTER = 10, 20
"""Characters that are shown around the place where two texts part."""


def differences(texts: Iterable[str], decoded: Iterable[str]) -> list[str]:
    """Say for each text that did not come back where it first differs.

    A space more or less at the start of a document is no difference: many tokenizers put one before the first word,
    so that it looks like the others, and take one away again.
    """
    return [
        _first_difference(text, other)
        for text, other in zip(texts, decoded, strict=True)
        if other not in (text, f" {text}", text.removeprefix(" "))
    ]


def _first_difference(text: str, decoded: str) -> str:
    pairs = enumerate(zip(text, decoded, strict=False))
    place = next((place for place, (one, other) in pairs if one != other), min(len(text), len(decoded)))
    shown = slice(max(0, place - BEFORE), place + AFTER)
    return f"{text[shown]!r} becomes {decoded[shown]!r}"
