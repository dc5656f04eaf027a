"""BM25 over token ids: which chunks share rare tokens with a query (Robertson and Zaragoza 2009; Lucene's variant).

    score(q, c) = sum over tokens t of q, with repeats:  idf(t) tf(t, c) / (tf(t, c) + k1 (1 - b + b |c| / mean |c|))
    idf(t)      = ln(1 + (N - df(t) + 1/2) / (df(t) + 1/2))

What stands for the embedder of RETRO in Doostmohammadi et al. 2023 (Surface-Based Retrieval Reduces Perplexity of
Retrieval-Augmented Language Models), alone or to rank dense candidates again. N, df and the mean length are those of
the whole training split, so that scores of different database shards can be compared and merging shards is exact.
Document markers and padding are no tokens here.
"""

import numpy as np

from retro_lab.corpus.tokens import TokenStore

BLOCK = 65_536
"""Chunks whose tokens are sorted at once."""
RANKED_AT_ONCE = 256
"""Queries whose candidates are read at once."""


class BM25:
    """Weights of tokens, learnt from all chunks of a token store."""

    def __init__(self, store: TokenStore, k1: float, b: float) -> None:
        """Count in how many chunks of `store` each token occurs; one pass over its tokens."""
        self.store = store
        self.k1 = k1
        self.b = b
        self.vocabulary = store.tokenizer.vocabulary_size
        frequency = np.zeros(self.vocabulary, np.int64)
        total = 0
        for first in range(0, store.chunks, BLOCK):
            tokens, real = real_tokens(store, np.arange(first, min(first + BLOCK, store.chunks)))
            token, _, _ = _distinct(tokens, real)
            frequency += np.bincount(token[token >= 0], minlength=self.vocabulary)
            total += int(real.sum())
        self.idf = np.log1p((store.chunks - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)
        """Weight of each token, float32 [vocabulary]."""
        self.mean_length = total / store.chunks

    def saturation(self, repeats: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Weight of a token that stands `repeats` times in a chunk of `lengths` tokens, from 0 up to 1; float32."""
        weight = repeats / (repeats + self.k1 * (1 - self.b + self.b * lengths / self.mean_length))
        return weight.astype(np.float32)

    def scores(self, query_store: TokenStore, queries: np.ndarray, chunks: np.ndarray) -> np.ndarray:
        """Score candidates: each of `queries`, [n], against its own `chunks`, [n, c], of the database; float32 [n, c].

        A negative chunk stands for none and gets minus infinity.
        """
        result = np.empty(chunks.shape, np.float32)
        weight = np.zeros(self.vocabulary, np.float32)
        for first in range(0, len(queries), RANKED_AT_ONCE):
            rows = slice(first, first + RANKED_AT_ONCE)
            candidates = np.maximum(chunks[rows], 0)
            tokens, real = real_tokens(self.store, candidates)
            token, repeats, length = _distinct(tokens, real)
            parts = np.where(token >= 0, self.saturation(repeats, length[..., None]), np.float32(0))
            for row, (query, counted) in enumerate(zip(*real_tokens(query_store, queries[rows]), strict=True)):
                asked, times = np.unique(query[counted], return_counts=True)
                weight[asked] = self.idf[asked] * times
                result[first + row] = (weight[token[row]] * parts[row]).sum(-1)
                weight[asked] = 0
        return np.where(chunks < 0, -np.inf, result)


class Postings:
    """For each token the chunks of one database shard that hold it, with the token's weight in them.

    About 8 bytes for each distinct token of a chunk, in memory; made from the tokens in less time than one search.
    """

    def __init__(self, bm25: BM25, start: int, stop: int) -> None:
        """Invert the chunks `start` up to `stop` of the store that `bm25` was counted on."""
        self.start = start
        self.chunks = stop - start
        tokens, places, weights = [], [], []
        for first in range(start, stop, BLOCK):
            chunks = np.arange(first, min(first + BLOCK, stop))
            token, repeats, length = _distinct(*real_tokens(bm25.store, chunks))
            chunk, column = np.nonzero(token >= 0)
            tokens.append(token[chunk, column].astype(np.int32))
            places.append((chunks[chunk] - start).astype(np.int32))
            parts = bm25.saturation(repeats[chunk, column], length[chunk])
            weights.append(bm25.idf[tokens[-1]] * parts)
        token = np.concatenate(tokens)
        order = np.argsort(token, kind="stable")
        self._begin = np.concatenate([[0], np.cumsum(np.bincount(token, minlength=bm25.vocabulary))])
        self._places = np.concatenate(places)[order]
        self._weights = np.concatenate(weights)[order]

    def search(self, store: TokenStore, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the `count` chunks with the highest scores for each of `queries`, chunks of `store`.

        Returns:
            Minus the scores, float32 [n, count], ascending, equal ones by id, and chunk ids, int64 [n, count]:
            infinity and -1 where no other chunk shares a token.
        """
        distances = np.full((len(queries), count), np.inf, np.float32)
        ids = np.full((len(queries), count), -1, np.int64)
        for row, (query, counted) in enumerate(zip(*real_tokens(store, queries), strict=True)):
            scores = np.zeros(self.chunks, np.float32)
            for token, times in zip(*np.unique(query[counted], return_counts=True), strict=True):
                postings = slice(self._begin[token], self._begin[token + 1])
                # A chunk stands once in the postings of a token, so nothing is lost where NumPy adds by index.
                scores[self._places[postings]] += self._weights[postings] * np.float32(times)
            best = highest(scores, count)
            best = best[scores[best] > 0]
            distances[row, : len(best)] = -scores[best]
            ids[row, : len(best)] = best + self.start
        return distances, ids


def highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the places of the `count` highest of `scores`, [n], highest first; equal ones in order of place."""
    if count < len(scores):
        last = np.partition(scores, len(scores) - count)[len(scores) - count]
        places = np.concatenate([np.flatnonzero(scores > last), np.flatnonzero(scores == last)[:count]])
    else:
        places = np.arange(len(scores))
    return places[np.argsort(-scores[places], kind="stable")][:count]


def real_tokens(store: TokenStore, chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read the tokens of chunks, int64 [..., m], and which of them are text, neither marker nor padding."""
    tokens = store.read(chunks).astype(np.int64)
    real = np.arange(store.chunk_length) < store.real_tokens(chunks)[..., None]
    return tokens, real & (tokens != store.tokenizer.document_marker)


def _distinct(tokens: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct tokens of each chunk, [..., m] with -1 in places left over, their repeats, and the lengths."""
    ordered = np.sort(np.where(real, tokens, -1), axis=-1)
    first = np.concatenate([np.ones_like(ordered[..., :1], bool), ordered[..., 1:] != ordered[..., :-1]], -1)
    # The repeats of a token are the distance from its first place to the next first place, or to the end.
    m = ordered.shape[-1]
    place = np.where(first, np.arange(m), m)
    following = np.minimum.accumulate(place[..., ::-1], axis=-1)[..., ::-1]
    following = np.concatenate([following[..., 1:], np.full_like(following[..., :1], m)], -1)
    keep = first & (ordered >= 0)
    return np.where(keep, ordered, -1), np.where(keep, following - np.arange(m), 0), real.sum(-1)
