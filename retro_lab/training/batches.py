"""The endless stream of training batches, a function of only the seed and the step.

Each batch of an epoch takes the next positions of a seeded permutation of all sequences, which is computed on demand
and never stored (`retro_lab.permutation`). There is no state between batches: a run that resumes at any step,
with any number of workers and ranks, gets exactly the batches of an uninterrupted run.
"""

from collections.abc import Iterator
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from retro_lab.errors import ConfigurationError, CorpusError
from retro_lab.permutation import chances, permute
from retro_lab.retrieval.sequences import Batch, Readable

ORDERED_AT_ONCE = 64
"""Number of global batches whose positions in the permutation are computed together."""


class TrainingBatch(TypedDict):
    """One rank's piece of a global batch: all of its share, or one of the batches whose gradients are accumulated."""

    batch: Batch
    text_tokens: Tensor
    """int64 []: text tokens of the whole global batch; the loss is the mean over them."""


def accumulated_batches(batch_size: int, micro_batch_size: int | None, devices: int) -> int:
    """Return in how many equal pieces, as few as possible, a device takes its share of the `batch_size` sequences.

    Args:
        batch_size: `data.batch_size`.
        micro_batch_size: `data.micro_batch_size`, the most sequences in a piece; None for any number.
        devices: Of all nodes.

    Raises:
        ConfigurationError: The global batch cannot be divided over the devices.
    """
    if batch_size % devices:
        raise ConfigurationError(
            f"data.batch_size={batch_size} cannot be divided over {devices} devices; make it a multiple of {devices}, "
            "or set trainer.devices and trainer.num_nodes so that it is."
        )
    share = batch_size // devices
    return next(
        pieces
        for pieces in range(1, share + 1)
        if share % pieces == 0 and share // pieces <= (micro_batch_size or share)
    )


def piece_size(batch_size: int, world: int, accumulated: int) -> int:
    """Return how many of the `batch_size` sequences one of `world` devices holds at a time.

    Raises:
        ConfigurationError: The global batch cannot be divided over devices and accumulated batches.
    """
    pieces = world * accumulated
    if batch_size % pieces:
        raise ConfigurationError(
            f"data.batch_size={batch_size} cannot be divided over {world} devices x {accumulated} accumulated batches; "
            f"make it a multiple of {pieces}."
        )
    return batch_size // pieces


class TrainingBatches(IterableDataset[TrainingBatch]):
    """The pieces of the global batches `start_step`, `start_step` + 1, ... that one rank trains on.

    A global batch is cut into `accumulated` x `world` pieces, first by accumulated batch, then by rank. The sequences
    of an optimizer step do not depend on how it is cut.
    """

    def __init__(
        self,
        sequences: Readable,
        piece_size: int,
        k: int,
        seed: int,
        *,
        start_step: int = 0,
        accumulated: int = 1,
        rank: int = 0,
        world: int = 1,
        repeated: int | None = None,
        neighbor_dropout: float = 0.0,
    ) -> None:
        """Yield the pieces of rank `rank` of `world`, `piece_size` sequences each.

        With `repeated`, only the first `repeated` global batches are used, again and again. Of the sequences, a share
        of `neighbor_dropout` has no neighbors: which ones depends on the seed and their places in the stream alone.

        Raises:
            CorpusError: The corpus is shorter than one sequence.
        """
        self.sequences, self.piece_size, self.k, self.seed = sequences, piece_size, k, seed
        self.start_step, self.accumulated, self.rank, self.world = start_step, accumulated, rank, world
        self.repeated, self.neighbor_dropout = repeated, neighbor_dropout
        self.sequence_count = len(sequences)
        if self.sequence_count == 0:
            raise CorpusError(
                f"The training split has less than one sequence of data.sequence_length={sequences.length} tokens; "
                "use a longer corpus or shorter sequences."
            )

    def global_batches(self, steps: np.ndarray) -> np.ndarray:
        """Return the first chunk of every sequence of `steps`, [steps, accumulated, world, piece_size]."""
        places = self._places(steps)
        epochs, places = np.divmod(places, self.sequence_count)
        order = np.empty_like(places)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            order[rows] = permute(places[rows], self.sequence_count, self.seed, int(epoch))
        return order * self.sequences.chunks_per_sequence

    def without_neighbors(self, steps: np.ndarray) -> np.ndarray:
        """Return which sequences of `steps` see no neighbors, bool [steps, accumulated, world, piece_size]."""
        return chances(self._places(steps), self.seed) < self.neighbor_dropout

    def documents(self, step: int) -> list[str]:
        """Return the ids of the documents in a global batch."""
        return self.sequences.document_ids(self.global_batches(np.array([step])).ravel())

    def _places(self, steps: np.ndarray) -> np.ndarray:
        """Return the place of every sequence in the stream of all epochs."""
        if self.repeated is not None:
            steps = steps % self.repeated
        shape = (self.accumulated, self.world, self.piece_size)
        places = steps[:, None] * np.prod(shape) + np.arange(np.prod(shape))
        return places.reshape(len(steps), *shape)

    def __iter__(self) -> Iterator[TrainingBatch]:
        """Yield pieces forever; with n workers, each yields every n-th piece, and the loader restores the order."""
        worker = get_worker_info()
        offset, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        number = 0
        steps = self.start_step + np.arange(ORDERED_AT_ONCE)
        while True:
            global_batches = zip(self.global_batches(steps), self.without_neighbors(steps), strict=True)
            for global_batch, dropped in global_batches:
                pieces = zip(global_batch[:, self.rank], dropped[:, self.rank], strict=True)
                mine = list(pieces)[(offset - number) % workers :: workers]
                number += self.accumulated
                if mine:  # count the tokens of the global batch only where the number is needed
                    text_tokens = torch.tensor(int(self.sequences.is_text(global_batch.ravel()).sum()))
                for first_chunks, alone in mine:
                    batch = self.sequences.read(first_chunks, self.k)
                    if self.k:
                        batch["neighbor_lengths"][torch.from_numpy(alone)] = 0
                    yield TrainingBatch(batch=batch, text_tokens=text_tokens)
            steps += ORDERED_AT_ONCE
