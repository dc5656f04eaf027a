"""The cache of a model as transformers' `generate` handles caches."""

import transformers
from torch import Tensor

from retro_lab.model.cache import Cache


class Past(transformers.Cache):
    """Holds a `retro_lab.model.cache.Cache`, which the model updates itself; transformers counts and reorders it."""

    is_compileable = False
    is_croppable = False

    def __init__(self, cache: Cache) -> None:
        """Hold `cache`; `layers` are what transformers' own caches are made of, and there are none."""
        super().__init__(layers=[])
        self.cache = cache

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the tokens read of each sequence, padding included."""
        return self.cache.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the sequences `beam_idx`, in this order; beam search repeats and drops some."""
        self.cache.select(beam_idx.tolist())

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens.

        Raises:
            ValueError: One of them has completed a chunk, whose neighbors would have to be forgotten.
        """
        self.cache.truncate(self.cache.length - abs(tokens_to_remove))
