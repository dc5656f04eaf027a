"""The cross-entropy of each token of a document, from the windows that the document is scored with."""

from collections.abc import Iterable

import numpy as np
import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from retro_lab.evaluation.scoring import ScoringModule
from retro_lab.evaluation.windows import WindowBatch, Windows
from retro_lab.model.language_model import LanguageModel
from retro_lab.retrieval.sequences import to_int64


def document_nats(
    trainer: pl.Trainer, model: LanguageModel, windows: Windows, document: int, ks: Iterable[int]
) -> dict[int, np.ndarray]:
    """Measure what a model takes for each token of a document, with each of several numbers of neighbors.

    Args:
        trainer: Moves model and windows to its device, and sets the precision.
        model: To measure.
        windows: Of the text, with neighbors for the largest k.
        document: Its number in the text.
        ks: Numbers of neighbors for each chunk.

    Returns:
        For each k, the nats of each token, float64 [T], the document's marker included; NaN where a token is not
        scored, as the marker is not. The others add up to the document's share in the score of the text.
    """
    ks = tuple(ks)
    share = _DocumentWindows(windows, document)
    batches = trainer.predict(_TokenScoring(model, ks), DataLoader(share, batch_size=None))
    length = int(windows.sequences.store.document_length[document])
    nats = {k: np.full(length, np.nan) for k in ks}
    assert batches is not None
    for numbers, mask, found in batches:
        first = windows.first_targets(numbers.numpy())
        window, target = mask.numpy().nonzero()
        for k, values in zip(ks, found, strict=True):
            nats[k][first[window] + target] = values[mask].numpy()
    return nats


class _DocumentWindows(Dataset[WindowBatch]):
    """The windows of one document, in batches."""

    def __init__(self, windows: Windows, document: int) -> None:
        self._windows, self._numbers = windows, windows.of_document(document)

    def __len__(self) -> int:
        return -(-len(self._numbers) // self._windows.batch_size)

    def __getitem__(self, index: int) -> WindowBatch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        size = self._windows.batch_size
        return self._windows.read(self._numbers[index * size : (index + 1) * size])


class _TokenScoring(ScoringModule):
    """Returns the nats of the targets of windows rather than their sums."""

    def predict_step(self, batch: WindowBatch, batch_idx: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        windows = to_int64(batch["batch"])
        nats = [self.token_nats(windows, k).double().cpu() for k, _ in self.measured()]
        return batch["windows"].cpu(), windows["mask"].cpu(), nats
