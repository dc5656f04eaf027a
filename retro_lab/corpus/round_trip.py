"""Whether documents come back from their tokens: what a tokenizer loses is in no model's score.

Bits per byte divide by the bytes of the documents. A tokenizer that lower-cases text, or knows one token for all that
it has not seen, leaves a model less to predict than these bytes, and its score looks better than it is.
"""

from collections.abc import Iterable

from retro_lab.corpus.tokens import TokenStore
from retro_lab.errors import ConfigurationError

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


def check_round_trip(held_out: TokenStore, lossy: bool) -> None:
    """Refuse a tokenizer that does not give the held-out documents back, unless that is accepted as `lossy`.

    Raises:
        ConfigurationError: A held-out document does not decode to its text.
    """
    facts = held_out.artifact.facts
    if facts["altered"] and not lossy:
        raise ConfigurationError(
            f"The tokenizer does not give back the text of {facts['altered']:,} of {held_out.documents:,} held-out "
            f"documents ({facts['altered_examples'][0]}), so bits per byte would be too low; choose another tokenizer, "
            "or accept it with tokenizer.lossy=true."
        )


def _first_difference(text: str, decoded: str) -> str:
    pairs = enumerate(zip(text, decoded, strict=False))
    place = next((place for place, (one, other) in pairs if one != other), min(len(text), len(decoded)))
    shown = slice(max(0, place - BEFORE), place + AFTER)
    return f"{text[shown]!r} becomes {decoded[shown]!r}"
