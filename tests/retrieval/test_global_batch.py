"""The gradient and the loss of a step are those of its global batch, however it is cut into pieces."""

from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from pipeline import CHUNK_LENGTH, RandomSentences, build_chunks, search

from retro_lab.errors import ConfigurationError
from retro_lab.evaluation.windows import Windows
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.retro import RetroModel
from retro_lab.retrieval.config import Value
from retro_lab.retrieval.sequences import Retrieved, Sequences
from retro_lab.training.batches import TrainingBatches, accumulated_batches, piece_size
from retro_lab.training.data import RetroDataModule
from retro_lab.training.module import RetroModule
from retro_lab.training.schedule import WarmupCosine

BATCH_SIZE = 8
SIZE = SizeConfig(
    name="small", width=8, ffw_width=8, heads=2, head_size=4, layers=1, cca_layers=[1], encoder_width=8,
    encoder_ffw_width=8, encoder_heads=2, encoder_head_size=4, encoder_layers=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Sequences:
    """Sequences of short and long documents, so that they hold very different numbers of text tokens."""
    chunks = build_chunks(tmp_path_factory.mktemp("batch"), tiny_bert, RandomSentences(documents=40, longest=40))
    ids = search(chunks, "train", stored=2).ids
    return Sequences(chunks.stores["train"], Retrieved(chunks.stores["train"], ids, Value.neighbor), 2 * CHUNK_LENGTH)


def new_module(sequences: Sequences) -> RetroModule:
    """The same weights each time; a step of its optimizer subtracts the gradient."""
    torch.manual_seed(0)
    vocabulary = sequences.store.tokenizer.vocabulary_size
    model = RetroModel(SIZE, ModelConfig(chunk_length=CHUNK_LENGTH, init_std=0.3), vocabulary).double()
    optimizer = partial(torch.optim.SGD, lr=1.0)
    return RetroModule(model, 2, [], optimizer, WarmupCosine(1, 0, 1, 1), seed=0)


def trained(sequences: Sequences, accumulated: int) -> tuple[dict[str, torch.Tensor], float]:
    """Gradients of one step and the loss that it logs."""
    module = new_module(sequences)
    before = {name: parameter.detach().clone() for name, parameter in module.model.named_parameters()}
    trainer = pl.Trainer(
        accelerator="cpu", precision="64-true", max_steps=1, accumulate_grad_batches=accumulated, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    windows = Windows(sequences, CHUNK_LENGTH, 1, 0, 1.0)
    trainer.fit(module, RetroDataModule(sequences, windows, batch_size=BATCH_SIZE, k=2, seed=1, workers=0))
    gradients = {name: before[name] - parameter.detach() for name, parameter in module.model.named_parameters()}
    return gradients, float(trainer.callback_metrics["train/loss"])


@pytest.fixture(scope="module")
def whole(sequences: Sequences) -> tuple[dict[str, torch.Tensor], float]:
    return trained(sequences, 1)


def test_one_piece_is_the_mean_over_its_text_tokens(sequences: Sequences, whole: Any) -> None:
    module, piece = new_module(sequences), next(iter(TrainingBatches(sequences, BATCH_SIZE, 2, 1)))
    inputs = piece["batch"]
    tokens, targets, neighbors = (inputs[name].long() for name in ("tokens", "targets", "neighbors"))  # type: ignore[literal-required]
    losses = module.model.token_losses(tokens, targets, neighbors, inputs["neighbor_lengths"])[inputs["mask"]]
    losses.mean().backward()
    assert whole[1] == pytest.approx(float(losses.mean()), rel=1e-6)
    for name, parameter in module.model.named_parameters():
        torch.testing.assert_close(whole[0][name], parameter.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("accumulated", [2, 4, 8])
def test_accumulated_batches_make_the_gradient_and_the_loss_of_one(
    sequences: Sequences, whole: Any, accumulated: int
) -> None:
    gradients, loss = trained(sequences, accumulated)
    assert loss == pytest.approx(whole[1], rel=1e-6)
    for name, gradient in whole[0].items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("world", "accumulated"), [(2, 1), (4, 1), (2, 2), (4, 2)])
def test_ranks_average_to_the_gradient_of_one(sequences: Sequences, whole: Any, world: int, accumulated: int) -> None:
    """Each rank's gradient is its own mean over accumulated batches; DistributedDataParallel averages over ranks."""
    module = new_module(sequences)
    module._trainer = SimpleNamespace(world_size=world, accumulate_grad_batches=accumulated)  # type: ignore[assignment]
    logged = 0.0
    for rank in range(world):
        pieces = TrainingBatches(
            sequences, BATCH_SIZE // world // accumulated, 2, 1, accumulated=accumulated, rank=rank, world=world
        )
        module.step_loss = torch.zeros(())
        for number, piece in enumerate(islice(pieces, accumulated)):
            (module.training_step(piece, number) / accumulated / world).backward()
        logged += float(module.step_loss) / world
    assert logged == pytest.approx(whole[1], rel=1e-6)
    for name, parameter in module.model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[0][name], rtol=0, atol=1e-12)


def test_a_sequence_whose_neighbors_are_dropped_is_one_of_retro_off(sequences: Sequences) -> None:
    """Its loss and its gradient are those without neighbors; the others of its batch keep theirs."""
    batches = TrainingBatches(sequences, 16, 2, 1, neighbor_dropout=0.5)
    piece, alone = next(iter(batches))["batch"], torch.from_numpy(batches.without_neighbors(np.arange(1)).ravel())
    assert 0 < alone.sum() < len(alone)
    model = new_module(sequences).model
    tokens, targets, neighbors = (piece[name].long() for name in ("tokens", "targets", "neighbors"))  # type: ignore[literal-required]
    with torch.no_grad():
        dropped = model.token_losses(tokens, targets, neighbors, piece["neighbor_lengths"])
        off = model.token_losses(tokens, targets, None, None)
    torch.testing.assert_close(dropped[alone], off[alone], rtol=0, atol=1e-12)
    assert (dropped[~alone] - off[~alone]).abs().amax(1).min() > 1e-6
    model.token_losses(
        tokens[alone], targets[alone], neighbors[alone], piece["neighbor_lengths"][alone]
    ).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.token_losses(tokens[alone], targets[alone], None, None).sum().backward()
    for name, parameter in model.named_parameters():
        zero = torch.zeros_like(parameter)
        found, expected = (gradient if gradient is not None else zero for gradient in (gradients[name], parameter.grad))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@given(share=st.integers(1, 500), devices=st.integers(1, 64), micro=st.none() | st.integers(1, 600))
def test_a_device_accumulates_as_few_pieces_as_its_micro_batch_allows(
    share: int, devices: int, micro: int | None
) -> None:
    pieces = accumulated_batches(share * devices, micro, devices)
    size = piece_size(share * devices, devices, pieces)
    assert size * pieces == share
    assert size <= (micro or share)
    fewer = [number for number in range(1, pieces) if share % number == 0]
    assert all(share // number > (micro or share) for number in fewer)
    if devices > 1:
        with pytest.raises(ConfigurationError, match=rf"cannot be divided over {devices} devices; make it a multiple"):
            accumulated_batches(share * devices + 1, micro, devices)


@pytest.mark.parametrize("repeated", [None, 2])
def test_the_documents_of_a_step_are_those_of_the_tokens_that_it_reads(
    sequences: Sequences, repeated: int | None
) -> None:
    """Each sequence is looked for in the whole text, token by token."""
    store = sequences.store
    windows = Windows(sequences, CHUNK_LENGTH, 1, 0, 1.0)
    data = RetroDataModule(sequences, windows, batch_size=BATCH_SIZE, k=0, seed=1, workers=0, overfit_batches=repeated)
    batches = TrainingBatches(sequences, BATCH_SIZE, 0, 1, start_step=5, repeated=repeated)
    tokens = next(iter(batches))["batch"]["tokens"].numpy()
    text, length = store.read(np.arange(store.chunks)), sequences.chunks_per_sequence
    found = {
        chunk + offset
        for row in tokens
        for chunk in range(store.chunks - length + 1)
        if np.array_equal(text[chunk : chunk + length].ravel(), row)
        for offset in range(length)
    }
    expected = {int(store.document_of(np.array([chunk]))[0]) for chunk in found}
    assert set(data.documents(5)) == set(store.document_ids(np.array(sorted(expected))))
