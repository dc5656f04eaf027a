"""A trained run as the server wants it: a live search of its database, and its model."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch

from retro_lab.corpus.tokenizer import DocumentTokenizer
from retro_lab.evaluation.generation import continue_texts
from retro_lab.evaluation.reader import TextReader
from retro_lab.retrieval.live import LiveRetrieval
from retro_lab.retrieval.neighbors import NO_NEIGHBOR
from retro_lab.runs.examples import FoundPassage, passages
from retro_lab.serving.engine import Facts, Neighbor, ReadChunk, Searched, Wanted, Written
from retro_lab.serving.refusals import RefusedError


class ServedRun:
    """A model and, unless it retrieves nothing, what it retrieves from."""

    def __init__(
        self,
        facts: Facts,
        tokenizer: DocumentTokenizer,
        live: LiveRetrieval | None,
        reader: Callable[[int], TextReader],
    ) -> None:
        """Serve a model.

        Args:
            facts: What it is.
            tokenizer: Of the model.
            live: Searches the database; None if the model retrieves nothing.
            reader: Returns the model, ready to read texts with k neighbors.
        """
        self.facts = facts
        self._tokenizer, self._live, self._reader = tokenizer, live, reader

    def search(self, texts: Sequence[str], k: int) -> list[Searched]:
        """Find the k nearest neighbors of each text.

        A text that is longer than a chunk is cut into the fewest chunks of about the same length, all of which are
        searched for: their neighbors are ranked together, and one that several of them have counts as the nearest's.
        """
        assert self._live is not None
        cut = [_cut(tokens[1:], self.facts.chunk_length) for tokens in self._tokenizer.encode(texts)]
        ids, distances = self._live.search([chunk for chunks in cut for chunk in chunks])
        found, first = [], 0
        for chunks in cut:
            rows = slice(first, first + len(chunks))
            first += len(chunks)
            ranked = _ranked(ids[rows], distances[rows], k)
            near = passages(self._live.store, [chunk for chunk, _, _ in ranked])
            neighbors = [
                Neighbor(**vars(passage), distance=distance, query_chunk=place)
                for passage, (_, distance, place) in zip(near, ranked, strict=True)
            ]
            pieces = self._tokenizer.pieces(np.concatenate(chunks))
            ends = np.cumsum([0, *map(len, chunks)])
            texts_of_chunks = ["".join(pieces[start:end]) for start, end in pairwise(ends)]
            found.append(Searched(chunks=texts_of_chunks, neighbors=neighbors))
        return found

    def generate(self, prompts: Sequence[str], wanted: Wanted) -> list[Written]:
        """Continue each prompt, which retrieves at the end of each of its chunks and of those that are added."""
        for name in ("top_k", "top_p", "retrieve_every"):
            if (value := getattr(wanted, name)) is not None:
                raise RefusedError(f"{name}={value} is not supported by this run's generator; leave it out.")
        reader = self._reader(wanted.k)
        return [self._continued(reader, prompt, wanted) for prompt in self._tokenizer.encode(prompts)]

    def _continued(self, reader: TextReader, prompt: np.ndarray, wanted: Wanted) -> Written:
        def text_of(tokens: np.ndarray) -> str:
            return self._tokenizer.decode([tokens])[0]

        def ends(tokens: np.ndarray) -> bool:
            return any(stop in text_of(tokens) for stop in wanted.stop)

        [new] = continue_texts(
            reader,
            [prompt],
            ends,
            max_tokens=wanted.max_tokens,
            temperature=wanted.temperature,
            generator=torch.Generator().manual_seed(wanted.seed),
        )
        text = text_of(new)
        places = [place for stop in wanted.stop if (place := text.find(stop)) >= 0]
        reason = "stop" if places else "length" if len(new) == wanted.max_tokens else "end"
        return Written(
            text=text[: min(places, default=len(text))],
            tokens=len(new),
            finish_reason=reason,
            chunks=self._chunks(prompt, new, wanted.k),
        )

    def _chunks(self, prompt: np.ndarray, new: np.ndarray, k: int) -> list[ReadChunk]:
        """Return the chunks of a prompt and its continuation, each with its k neighbors."""
        m, begun, tokens = self.facts.chunk_length, len(prompt), np.concatenate([prompt, new])
        pieces = self._tokenizer.pieces(tokens)
        near: list[list[FoundPassage]] = []
        if k and self._live is not None:
            whole = tokens[: len(tokens) // m * m].reshape(-1, m)
            for ids, distances in zip(*self._live.search(list(whole)), strict=True):
                real = ids[:k][ids[:k] != NO_NEIGHBOR].tolist()
                near.append(
                    [
                        FoundPassage(**vars(passage), distance=float(distance))
                        for passage, distance in zip(passages(self._live.store, real), distances, strict=False)
                    ]
                )
        return [
            ReadChunk(
                prompt="".join(pieces[first : min(first + m, begun)]),
                text="".join(pieces[max(first, begun) : first + m]),
                neighbors=near[place] if place < len(near) else [],
            )
            for place, first in enumerate(range(0, len(tokens), m))
        ]


def _cut(tokens: np.ndarray, m: int) -> list[np.ndarray]:
    """Cut the tokens of a text into the fewest pieces of at most m, none much shorter than the others."""
    return np.array_split(tokens, max(1, -(-len(tokens) // m)))


def _ranked(ids: np.ndarray, distances: np.ndarray, k: int) -> list[tuple[int, float, int]]:
    """Return chunk, distance and place of the k nearest neighbors of several chunks, [chunks, stored], together."""
    order = np.argsort(distances, axis=None, kind="stable")
    found: dict[int, tuple[int, float, int]] = {}
    for place, rank in zip(*np.unravel_index(order, ids.shape), strict=True):
        chunk = int(ids[place, rank])
        if chunk != NO_NEIGHBOR and chunk not in found:
            found[chunk] = (chunk, float(distances[place, rank]), int(place))
            if len(found) == k:
                break
    return list(found.values())
