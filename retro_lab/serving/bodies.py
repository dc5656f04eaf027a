"""What clients send: the fields of each request, and every reason to refuse one.

Fields are strict: a number in quotes is no number, and a field that does not exist is refused. `/search` takes the form
of massive-serve (PyPI `massive-serve` 0.1.20) and, with `queries`, that of DS Serve.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retro_lab.serving.engine import Facts, Wanted
from retro_lab.serving.refusals import RefusedError

Texts = str | list[str]
Body = TypeVar("Body", bound="_Body")

SHOWN = 60
"""Characters of a refused value that are repeated to the client."""
MOST_STOPS, LONGEST_STOP = 16, 200
"""Most stop texts, and most characters of one."""
DEFAULT_TOKENS = 64
"""Tokens that a prompt is continued by where a client does not say; fewer if fewer are allowed."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest requests, each with the setting that says so."""

    max_texts: int
    """Texts of a request."""
    max_characters: int
    """Characters of a text."""
    max_tokens: int
    """Tokens that a prompt is continued by."""
    max_body_bytes: int
    """Bytes of a request."""
    max_waiting: int
    """Requests that wait for their turn."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class SearchBody(_Body):
    """Texts to search for."""

    query: Texts | None = None
    """A text, or a list of texts."""
    queries: list[str] | None = None
    """A list of texts, in place of `query`."""
    n_docs: Annotated[int, Field(ge=1)] = 1
    """Neighbors of each text."""
    nprobe: None = None
    """Only null: an index is searched with the parameters that were tuned when it was built."""
    domains: str | None = None
    """Name of the corpus that is searched, if the client wants to be sure."""


class GenerateBody(_Body):
    """Prompts to continue."""

    prompt: Texts
    """A text, or a list of texts."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens to add to each prompt."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    """0 takes the most likely token; otherwise tokens are drawn after the logits are divided by this."""
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Draw from so many of the likeliest tokens."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Draw from the fewest likeliest tokens whose probabilities add up to this."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of what is drawn."""
    stop: Texts = []
    """Text or texts at which a continuation ends."""
    k: Annotated[int, Field(ge=0)] | None = None
    """Neighbors of each chunk; 0 turns retrieval off, null takes as many as the model was trained with."""
    retrieve_every: Annotated[int, Field(ge=1)] | None = None
    """Tokens from one search to the next; null searches at the end of each chunk."""
    drafts: bool = False
    """Whether to try what follows in the neighbors as drafts: the text is the same, and a single one comes faster."""


def parsed(kind: type[Body], body: bytes) -> Body:
    """Read a request.

    Raises:
        RefusedError: The body is not JSON, or has not the fields of `kind`.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        # Of a value that is neither of two kinds there are two errors; the deeper one says more.
        deepest = max(error.errors(include_url=False), key=lambda found: len(found["loc"]))
        raise RefusedError(_sentence(kind, deepest)) from None


def searched_texts(body: SearchBody, facts: Facts, limits: Limits) -> list[str]:
    """Return the texts to search for.

    Raises:
        RefusedError: There are none or too many, one is empty or too long, or what is asked for is not there.
    """
    if facts.corpus is None:
        raise RefusedError("This run retrieves nothing, so it has no database to search; serve one with k > 0.", 409)
    if body.domains not in (None, facts.corpus):
        raise RefusedError(f"domains={_shown(body.domains)} is not served here; leave it out to search {facts.corpus}.")
    if (body.query is None) == (body.queries is None):
        raise RefusedError("query is missing; send one text or a list of texts as query, or a list as queries.")
    if body.n_docs > facts.max_neighbors:
        raise RefusedError(f"n_docs={_shown(body.n_docs)} is more than the {facts.max_neighbors} neighbors of a text.")
    if body.queries is not None:
        return _texts("queries", body.queries, limits)
    assert body.query is not None
    return _texts("query", body.query, limits)


def prompts(body: GenerateBody, limits: Limits) -> list[str]:
    """Return the prompts of a request.

    Raises:
        RefusedError: There are none or too many, or one is empty or too long.
    """
    return _texts("prompt", body.prompt, limits)


def wanted(body: GenerateBody, facts: Facts, limits: Limits) -> Wanted:
    """Return how the prompts of a request are to be continued.

    Raises:
        RefusedError: A number is larger than this server or this run allows.
    """
    tokens = min(DEFAULT_TOKENS, limits.max_tokens) if body.max_tokens is None else body.max_tokens
    if tokens > limits.max_tokens:
        raise RefusedError(
            f"max_tokens={_shown(tokens)} is more than {limits.max_tokens}, which is the most (task.max_tokens)."
        )
    k = facts.k if body.k is None else body.k
    most = facts.max_neighbors if facts.k else 0
    if k > most:
        advice = f"ask for at most {most}" if most else "this model reads none, so leave it out"
        raise RefusedError(f"k={_shown(k)} neighbors are too many; {advice}.")
    if body.retrieve_every is not None and body.retrieve_every > facts.chunk_length:
        raise RefusedError(
            f"retrieve_every={_shown(body.retrieve_every)} is more than the {facts.chunk_length} tokens of a chunk."
        )
    if not body.temperature and (body.top_k is not None or body.top_p is not None):
        raise RefusedError("top_k and top_p are for drawn tokens; set a temperature above 0, or leave them out.")
    stops = [body.stop] if isinstance(body.stop, str) else body.stop
    if len(stops) > MOST_STOPS:
        raise RefusedError(f"stop has {len(stops)} texts; send at most {MOST_STOPS}.")
    for stop in stops:
        if not 0 < len(stop) <= LONGEST_STOP:
            raise RefusedError(f"stop={_shown(stop)} must have from 1 to {LONGEST_STOP} characters.")
    return Wanted(
        max_tokens=tokens,
        temperature=body.temperature,
        top_k=body.top_k,
        top_p=body.top_p,
        seed=body.seed,
        stop=stops,
        k=k,
        retrieve_every=body.retrieve_every,
        drafts=body.drafts,
    )


def _texts(name: str, given: Texts, limits: Limits) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not 0 < len(texts) <= limits.max_texts:
        raise RefusedError(f"{name} has {len(texts)} texts; send from 1 to {limits.max_texts} (task.max_texts).")
    for number, text in enumerate(texts):
        where = name if isinstance(given, str) else f"{name}[{number}]"
        if not text:
            raise RefusedError(f'{where}="" has no text; send at least one character.')
        if len(text) > limits.max_characters:
            raise RefusedError(
                f"{where}={_shown(text)} has {len(text):,} characters; send at most {limits.max_characters:,} "
                "(task.max_characters)."
            )
        if "\0" in text:
            raise RefusedError(f"{where}={_shown(text)} has a NUL character, which is no text; leave it out.")
    return texts


def _sentence(kind: type[_Body], error: Any) -> str:
    """Return what is wrong with a body."""
    fields = ", ".join(kind.model_fields)
    name = _name(error["loc"])
    match error["type"]:
        case "json_invalid":
            reason = error["ctx"]["error"]
            return f"The body is not JSON that can be read ({reason}); send an object with some of {fields}."
        case "extra_forbidden":
            return f"{name} is not a field of this request; the fields are {fields}."
        case "missing":
            return f"{name} is missing; the fields are {fields}."
        case "none_required":
            return f"{name}={_shown(error['input'])} cannot be chosen here; leave it out."
    if not name:
        return f"The body is {_shown(error['input'])}; send an object with some of {fields}."
    reason = error["msg"].removeprefix("Input should be ")
    return f"{name}={_shown(error['input'])} should be {reason}."


def _name(place: Sequence[str | int]) -> str:
    """Return a field as clients write it: `query[1]`, without the kinds of a value that may be of several."""
    if not place:
        return ""
    indexes = "".join(f"[{part}]" for part in place[1:] if isinstance(part, int))
    return f"{_shorter(str(place[0]))}{indexes}"


def _shown(value: object) -> str:
    """Return a value as JSON, shortened."""
    try:
        return _shorter(json.dumps(value))
    except (TypeError, ValueError):  # an integer of thousands of digits, or bytes
        return "a value that is too long to repeat"


def _shorter(text: str) -> str:
    text = ascii(text)[1:-1] if not text.isprintable() else text
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
