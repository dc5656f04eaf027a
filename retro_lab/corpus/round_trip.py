"""Comparison of documents with their decoded tokens: models are not scored on what a tokenizer loses.

Bits per byte divide by the bytes of the documents. A tokenizer that lower-cases text, or has one token for
everything it has not seen, leaves a model less to predict than these bytes, which makes the score look too good.
"""

from collections.abc import Iterable

BEFORE, AFTER = 10, 20
"""Characters that are shown before and after the first difference."""


def differences(texts: Iterable[str], decoded: Iterable[str]) -> list[str]:
    """Describe the first difference of each text that its tokens do not decode to.

    A space at the start of a document does not count: many tokenizers add one before the first word, so that it looks
    like the others, and remove one again.
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
