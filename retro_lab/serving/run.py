"""A trained run as the server wants it: a live search of its database, and its model."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from retro_lab.corpus.tokenizer import DocumentTokenizer
from retro_lab.generation.drafts import Drafter
from retro_lab.generation.generator import Generated, Generator
from retro_lab.generation.retrieved import Found
from retro_lab.generation.sampling import Sampling
from retro_lab.retrieval.live import LiveRetrieval
from retro_lab.retrieval.neighbors import NO_NEIGHBOR
from retro_lab.runs.examples import FoundPassage, passages
from retro_lab.serving.engine import Facts, Neighbor, Searched, Stretch, Wanted, Written


class ServedRun:
    """A model and, unless it retrieves nothing, what it retrieves from."""

    def __init__(
        self,
        facts: Facts,
        tokenizer: DocumentTokenizer,
        live: LiveRetrieval | None,
        generator: Callable[[int], Generator],
    ) -> None:
        """Serve a model.

        Args:
            facts: What it is.
            tokenizer: Of the model.
            live: Searches the database; None if the model retrieves nothing.
            generator: Returns what writes with k neighbors of each chunk.
        """
        self.facts = facts
        self._tokenizer, self._live, self._generator = tokenizer, live, generator

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
        """Continue each prompt; it retrieves at the end of each of its chunks and of those that are written."""
        written = self._generator(wanted.k).generate(
            self._tokenizer.encode(prompts),
            max_tokens=wanted.max_tokens,
            sampling=Sampling(wanted.temperature, wanted.top_k, wanted.top_p, wanted.seed),
            stop=wanted.stop,
            retrieve_every=wanted.retrieve_every,
            drafter=Drafter if wanted.drafts else None,
        )
        return [
            Written(
                text=each.text,
                tokens=len(each.tokens),
                finish_reason=each.finish.value,
                stretches=self._stretches(each),
            )
            for each in written
        ]

    def _stretches(self, written: Generated) -> list[Stretch]:
        """Cut a prompt and its continuation where something was retrieved."""
        begun, tokens = len(written.prompt), np.concatenate([written.prompt, written.tokens])
        pieces = self._tokenizer.pieces(tokens)
        near = {chunk.stop: self._read(chunk.found) for chunk in written.chunks}
        ends = sorted({0, *near, len(tokens)})
        return [
            Stretch(
                prompt="".join(pieces[first : min(end, begun)]),
                text="".join(pieces[max(first, begun) : end]),
                neighbors=near.get(end, []),
            )
            for first, end in pairwise(ends)
        ]

    def _read(self, found: Found) -> list[FoundPassage]:
        assert self._live is not None
        real = found.ids != NO_NEIGHBOR
        near = passages(self._live.store, found.ids[real].tolist())
        return [
            FoundPassage(**vars(passage), distance=distance)
            for passage, distance in zip(near, found.distances[real].tolist(), strict=True)
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
