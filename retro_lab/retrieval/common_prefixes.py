"""LCP: how much of what leads up to a token stands, word for word, in what was retrieved for the chunk before.

Borgeaud et al. 2022 color their samples with it (Tables 16 to 21): for token i of chunk C_u it is the largest j for
which the j tokens that end with token i appear in RET(C_{u-1}). They may begin before C_u, but not before the document,
whose marker equals nothing.
"""

import numpy as np


def common_prefixes(
    tokens: np.ndarray, start: int, neighbors: np.ndarray, lengths: np.ndarray, marker: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return LCP of the tokens of a chunk, and the longest run that ends with each token of its neighbors.

    Args:
        tokens: Of a document, from its marker to the chunk's end, int [T].
        start: Where the chunk begins in them.
        neighbors: What the chunk is predicted from, int [k, r].
        lengths: Tokens of each neighbor, int [k]; 0 if there is none.
        marker: Id of the document marker.

    Returns:
        LCP of each token of the chunk, int64 [T - start], from 0 to r; and for each token of a neighbor, int64 [k, r],
        the largest j for which the j tokens that end there end somewhere in the chunk as well.
    """
    k, r = neighbors.shape
    prefixes, runs = np.zeros(len(tokens) - start, np.int64), np.zeros((k, r), np.int64)
    if not neighbors.size:
        return prefixes, runs
    is_text = (np.arange(r) < lengths[:, None]) & (neighbors != marker)
    # Runs that end at the token at hand and at each token of a neighbor; they are no longer than a neighbor.
    ending = np.zeros((k, r), np.int64)
    for place in range(max(0, start - r), len(tokens)):
        before = np.pad(ending[:, :-1], ((0, 0), (1, 0)))
        ending = np.where(is_text & (neighbors == tokens[place]), before + 1, 0)
        if place >= start:
            prefixes[place - start] = ending.max()
            runs = np.maximum(runs, ending)
    return prefixes, runs
