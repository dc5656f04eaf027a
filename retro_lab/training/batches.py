"""The endless stream of training batches, a function of seed and batch number alone.

Batch b of an epoch takes the next places of a seeded permutation of all sequences, which is computed and never held
(`retro_lab.training.permutation`). Nothing is remembered between batches: a run that resumes at batch b, with any number of workers and ranks, gets exactly the batches it would have.
"""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from retro_lab.errors import CorpusError
from retro_lab.retrieval.sequences import Batch, Sequences
from retro_lab.training.permutation import permuted


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

    def sequences_of(self, batch: int) -> np.ndarray:
        """Return the first chunks of this rank's sequences in global batch `batch`, [batch_size]."""
        first = (batch * self.world + self.rank) * self.batch_size
        epoch, place = np.divmod(np.arange(first, first + self.batch_size), self.sequence_count)
        order = np.empty(self.batch_size, np.int64)
        for number in np.unique(epoch):
            rows = epoch == number
            order[rows] = permuted(place[rows], self.sequence_count, self.seed, int(number))
        return order * self.sequences.chunks_per_sequence

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches for ever; with several workers each takes every so-manieth, which the loader puts in order."""
        worker = get_worker_info()
        offset, step = (worker.id, worker.num_workers) if worker else (0, 1)
        batch = self.start + offset
        while True:
            yield self.sequences.read(self.sequences_of(batch), self.k)
            batch += step
