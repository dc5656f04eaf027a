"""RETROfit of a Hugging Face decoder: an encoder and chunked cross-attention for a model that is left as it is.

The base runs its own forward pass, with its own positions, masks and caches. While it runs with neighbors, each layer
of P has a hook on the module whose result a it adds to its residual stream x: the hook makes that result
a + CCA(norm(x + a)). Without neighbors there is no hook, and the result is the base's bit for bit.

Shapes: B batch, N sequence length, D width of the base, V vocabulary.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from retro_lab.errors import ConfigurationError
from retro_lab.model.backbones.base_cache import BaseCache
from retro_lab.model.backbones.layouts import attention_factor, attention_of, layers_of, readout_of, size_of
from retro_lab.model.blocks import Branch
from retro_lab.model.cache import Cache
from retro_lab.model.chunked_cross_attention import ChunkedCrossAttention
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.distances import DistanceEncoder
from retro_lab.model.encoder import NeighborEncoder
from retro_lab.model.initialization import draw, is_cca_output
from retro_lab.model.kernels.cross_entropy import Readout
from retro_lab.model.language_model import LanguageModel
from retro_lab.model.neighbor_cache import NeighborCache
from retro_lab.model.neighbors import RetrievedNeighbors
from retro_lab.model.validation import check_model


class RetrofittedModel(LanguageModel):
    """A Hugging Face causal language model with chunked cross-attention.

    Attributes:
        base: the causal language model.
        cca: the `Branch` of each layer of P, by its number, from 1.
        size: widths, heads and layers of the base, and the encoder's.
        frozen: whether the base is not trained; it then has no dropout in training either.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        size: SizeConfig,
        model: ModelConfig,
        cca_layers: list[int] | None = None,
        *,
        frozen: bool = True,
    ) -> None:
        """Add an encoder and chunked cross-attention, of the base's type of numbers and on its device.

        Args:
            base: a causal language model of an architecture in `LAYOUTS`.
            size: gives the encoder.
            model: the choices for the encoder and chunked cross-attention; their positions do not depend on the base's.
            cca_layers: P, counted from 1; None for every third layer from the sixth; empty for the base alone, which
                takes no neighbors.
            frozen: whether to train the encoder and chunked cross-attention alone.

        Raises:
            ConfigurationError: the base cannot be RETROfitted, or not with these settings.
        """
        size = size_of(base.config, size, cca_layers)
        vocabulary_size = int(base.config.vocab_size)
        check_model(size, model, vocabulary_size)
        if model.document_masks:
            raise ConfigurationError(
                "model.document_masks=true is not possible with backbone=hf, because the base masks its attention "
                "itself; set it to false."
            )
        super().__init__()
        self.base, self.size, self.frozen = base, size, frozen
        layers_of(base), readout_of(base)  # both check the base
        tokens = cast("nn.Embedding", base.get_input_embeddings())
        if model.shared_embeddings and tokens.embedding_dim != size.encoder_width:
            raise ConfigurationError(
                f"model.shared_embeddings=true needs size.encoder_width ({size.encoder_width}) to equal the width of "
                f"the base's embeddings ({tokens.embedding_dim})."
            )
        self.width, self.chunk_length = size.width, model.chunk_length
        self.document_masks, self.init_std = False, model.init_std
        self.distances = DistanceEncoder(model, size.width, size.head_size)
        self._checkpointed = False
        with torch.device("meta"):  # so that weights are drawn once, below
            self.cca = nn.ModuleDict(
                {
                    str(number): Branch(
                        ChunkedCrossAttention(
                            size.width,
                            size.encoder_width,
                            size.heads,
                            size.head_size,
                            model.chunk_length,
                            positions=model.positions,
                            use_positions=model.cca_positions,
                        ),
                        size.width,
                        model.norm_eps,
                        model.dropout,
                    )
                    for number in sorted(size.cca_layers)
                }
            )
            self.encoder = NeighborEncoder(size, model, vocabulary_size) if size.cca_layers else None
        for part in (self.cca, self.encoder) if self.encoder is not None else ():
            part.to(base.dtype).to_empty(device=tokens.weight.device)
        self.reset_parameters()
        base.requires_grad_(not frozen)
        self.train(base.training)

    @property
    def embedding(self) -> nn.Embedding:  # type: ignore[override]
        """The base's embedding of tokens."""
        return cast("nn.Embedding", self.base.get_input_embeddings())

    @property
    def readout_weight(self) -> Tensor:
        """Weight [V, D] of the base's head."""
        return self.head.weight

    @property
    def head(self) -> Readout:
        """The base's head."""
        return readout_of(self.base)

    def reset_parameters(self) -> None:
        """Draw the weights of encoder and chunked cross-attention anew, whose last product is zero."""
        draw(
            self.retrieval_parameters(),
            self.init_std,
            {"decoder": self.size.layers, "encoder": self.size.encoder_layers},
        )
        for name, parameter in self.retrieval_parameters():
            if is_cca_output(name):
                nn.init.zeros_(parameter)

    def to_empty(self, *, device: str | torch.device | int | None, recurse: bool = True) -> "RetrofittedModel":
        """Move the parameters to a device without their values; buffers, which are not drawn anew, keep theirs."""
        kept = {name: buffer for name, buffer in self.named_buffers() if not buffer.is_meta}
        super().to_empty(device=device, recurse=recurse)
        for name, buffer in kept.items():
            self.get_buffer(name).copy_(buffer)
        return self

    def blocks(self) -> Iterator[nn.Module]:
        """Yield the base's layers, the blocks of the encoder, and those of chunked cross-attention."""
        yield from layers_of(self.base)
        yield from super().blocks()

    def is_table(self, name: str, parameter: nn.Parameter) -> bool:
        """Return whether a parameter is an embedding table of V rows or the base's read-out."""
        tables = (self.embedding.weight, self.head.weight, self.head.bias)
        return super().is_table(name, parameter) or any(parameter is table for table in tables)

    def train(self, mode: bool = True) -> "RetrofittedModel":
        """Set training or evaluation mode; a frozen base stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.base.eval()
        return self

    def checkpoint_activations(self, checkpointed: bool = True) -> None:
        """Keep only the input of each layer and block for the backward pass (less memory), or, if False, everything."""
        super().checkpoint_activations(checkpointed)
        self._checkpointed = checkpointed

    def forward(
        self,
        tokens: Tensor,
        neighbors: Tensor | None = None,
        neighbor_lengths: Tensor | None = None,
        documents: Tensor | None = None,
        padding: Tensor | None = None,
        cache: Cache | None = None,
        windows: Sequence[bool] | None = None,
    ) -> Tensor:
        """Compute the final hidden states, which the base's head reads, as `LanguageModel.forward` says."""
        if cache is None:
            self._check_documents(tokens, documents)
        else:
            padding = cache.begin(tokens, padding, documents)
        start = 0 if cache is None else cache.length
        at = torch.arange(start + tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        is_text, positions = None, None if cache is None else at[:, start:]
        if padding is not None:
            is_text = at >= padding[:, None]
            tokens = tokens.masked_fill(~is_text[:, start:], 0)
            positions = (at - padding[:, None]).clamp(min=0)[:, start:]
        retrieved = self._retrieved(tokens, neighbors, neighbor_lengths, documents, is_text, cache, windows)
        with self._layers_retrieve(retrieved):
            output = self.base.base_model(
                input_ids=tokens,
                attention_mask=None if is_text is None else is_text.long(),
                position_ids=positions,
                past_key_values=None if cache is None else cast("BaseCache", cache.decoder).past,
                use_cache=cache is not None,
            )
        if cache is not None:
            cache.length += tokens.shape[1]
        return cast("Tensor", output.last_hidden_state)

    def empty_cache(self, *, padding_in_grid: bool = False) -> Cache:
        """Return a cache of no tokens."""
        return Cache(self.chunk_length, BaseCache(), NeighborCache(self.chunk_length), padding_in_grid=padding_in_grid)

    @contextmanager
    def _layers_retrieve(self, retrieved: RetrievedNeighbors | None) -> Iterator[None]:
        """Let the layers attend to neighbors, and keep only their inputs for the backward pass if asked to.

        Each layer's `forward` is replaced for this time, so that everything of the pass is an argument of the function
        that a layer runs. The backward pass of a checkpointed layer calls the same function once more.
        """
        layers = layers_of(self.base)
        asked = self._checkpointed or any(getattr(layer, "gradient_checkpointing", False) for layer in layers)
        checkpointed = asked and torch.is_grad_enabled()
        if retrieved is None and not checkpointed:
            yield
            return
        current = _Pass(retrieved)
        with ExitStack() as restoring:
            for number, layer in enumerate(layers, start=1):
                run: Callable[..., Any] = layer.forward
                if retrieved is not None and str(number) in self.cca:
                    run = self._with_retrieval(layer, number, current)
                if checkpointed:
                    run = _checkpointing(layer, run)
                    restoring.enter_context(_replaced(layer, "gradient_checkpointing", False))
                restoring.enter_context(_replaced(layer, "forward", run))
            yield
        if retrieved is not None and current.attended != {int(number) for number in self.cca}:
            raise RuntimeError(f"Only the layers {sorted(current.attended)} of {list(self.cca)} attended to neighbors.")

    def _with_retrieval(self, layer: nn.Module, number: int, current: "_Pass") -> Callable[..., Any]:
        """Return a function that runs a layer of P with its chunked cross-attention."""
        run, attention, cca = layer.forward, attention_of(self.base, layer), cast("Branch", self.cca[str(number)])
        factor, first = attention_factor(self.base.config), number == min(self.size.cca_layers)

        def run_with_retrieval(*inputs: Any, **named: Any) -> Any:
            stream = inputs[0] if inputs else named["hidden_states"]

            def add(_: nn.Module, __: Any, output: Any) -> Any:
                attended = output[0] if isinstance(output, tuple) else output
                hidden = stream + (attended if factor == 1 else attended * factor)
                if first:
                    # A new one, which encodes the neighbors: this may be the backward pass, which computes it again.
                    current.retrieved = copy.copy(current.given)
                assert current.retrieved is not None
                current.attended.add(number)
                # In the type of the residual stream: under autocast the attention's own would round the small to zero.
                added = current.retrieved.attend(cca, hidden)
                if added is None:
                    return None
                added = added.to(stream.dtype)
                attended = attended + (added if factor == 1 else added / factor)
                return (attended, *output[1:]) if isinstance(output, tuple) else attended

            handle = attention.register_forward_hook(add)
            try:
                return run(*inputs, **named)
            finally:
                handle.remove()

        return run_with_retrieval


class _Pass:
    """The neighbors of one forward pass of the base."""

    def __init__(self, given: RetrievedNeighbors | None) -> None:
        self.given, self.retrieved = given, given
        self.attended: set[int] = set()


def _checkpointing(layer: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
    def run_without_its_own(*inputs: Any, **named: Any) -> Any:
        with _replaced(layer, "gradient_checkpointing", False):  # it would not know of the neighbors
            return run(*inputs, **named)

    def checkpointed(*inputs: Any, **named: Any) -> Any:
        return checkpoint(run_without_its_own, *inputs, use_reentrant=False, **named)

    return checkpointed


@contextmanager
def _replaced(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Give a module an attribute of its own for a while, in place of its class's or the one that it had."""
    had, old = name in vars(module), vars(module).get(name)
    setattr(module, name, value)
    try:
        yield
    finally:
        if had:
            setattr(module, name, old)
        else:
            delattr(module, name)
