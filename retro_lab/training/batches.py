"""The endless stream of training batches, a function of seed and batch number alone.

Batch b of an epoch takes the next places of a seeded permutation of all sequences, which is computed and never held
(`retro_lab.training.permutation`). Nothing is remembered between batches: a run that resumes at batch b, with any
number of workers and ranks, gets exactly the batches it would have.
"""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from retro_lab.errors import CorpusError
from retro_lab.retrieval.sequences import Batch, Sequences
from retro_lab.training.permutation import permuted

ORDERED_AT_ONCE = 64
"""Batches whose places in the permutation are computed together."""


class TrainingBatches(IterableDataset[Batch]):
    """Batches `start`, `start` + 1, ... of one rank."""

    def __init__(
        self, sequences: Sequences, batch_size: int, k: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        """Give rank `rank` of `world` its `batch_size` sequences of each global batch.

        Raises:
            CorpusError: The corpus is shorter than one sequence.
        """
        self.sequences, self.batch_size, self.k, self.seed = sequences, batch_size, k, seed
        self.start, self.rank, self.world = start, rank, world
        self.sequence_count = sequences.store.chunks // sequences.chunks_per_sequence
        if self.sequence_count == 0:
            raise CorpusError(
                f"The training split has {sequences.store.chunks} chunks, less than one sequence of "
                f"data.sequence_length={sequences.length} tokens; use a longer corpus or shorter sequences."
            )

    def sequences_of(self, batches: np.ndarray) -> np.ndarray:
        """Return the first chunks of this rank's sequences in the global batches `batches`, [batches, batch_size]."""
        places = (batches[:, None] * self.world + self.rank) * self.batch_size + np.arange(self.batch_size)
        epochs, places = np.divmod(places, self.sequence_count)
        order = np.empty_like(places)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            order[rows] = permuted(places[rows], self.sequence_count, self.seed, int(epoch))
        return order * self.sequences.chunks_per_sequence

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches for ever; with several workers each takes every so-manieth, which the loader puts in order."""
        worker = get_worker_info()
        offset, step = (worker.id, worker.num_workers) if worker else (0, 1)
        batches = self.start + offset + step * np.arange(ORDERED_AT_ONCE)
        while True:
            for first_chunks in self.sequences_of(batches):
                yield self.sequences.read(first_chunks, self.k)
            batches += step * ORDERED_AT_ONCE
