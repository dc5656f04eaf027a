"""The whole RETRO model (Borgeaud et al. 2022, Algorithm 1), and the baseline transformer, which is RETRO without P.

    H = EMB(X)
    for p in 1 .. L:
        H = ATTN(H)                              causal
        if p = min(P): E = ENCODER(RET, H)       H after this layer's attention, before CCA and FFW
        if p in P: H = CCA(H, E)
        H = FFW(H)
    O = READ(H)

With retrieval off (no neighbors given) the two `if` lines are skipped, and the result equals, bit for bit, that of a
baseline with the same weights. As blocks are pre-norm, a last norm precedes READ; the paper does not mention it.

Shapes: B batch, N sequence length, L = floor(N / M) complete chunks, M chunk length, K neighbors, R neighbor tokens,
D width of the decoder, E width of the encoder, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from retro_lab.model.cache import Cache
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.decoder import DecoderLayer
from retro_lab.model.decoder_cache import DecoderCache
from retro_lab.model.distances import DistanceEncoder
from retro_lab.model.encoder import NeighborEncoder
from retro_lab.model.initialization import draw
from retro_lab.model.kernels.memory_efficient import RMSNorm
from retro_lab.model.language_model import LanguageModel
from retro_lab.model.neighbor_cache import NeighborCache
from retro_lab.model.validation import check_model


class RetroModel(LanguageModel):
    """RETRO of any size; the baseline transformer if `size.cca_layers` is empty."""

    def __init__(self, size: SizeConfig, model: ModelConfig, vocabulary_size: int) -> None:
        """Create and initialize the model.

        Args:
            size: widths, heads, layers, P and P_enc.
            model: the choices that do not depend on the size.
            vocabulary_size: V.

        Raises:
            ConfigurationError: a value, or a combination of values, that cannot work.
        """
        check_model(size, model, vocabulary_size)
        super().__init__()
        self.width, self.chunk_length = size.width, model.chunk_length
        self.distances = DistanceEncoder(model, size.width, size.head_size)
        self.layer_counts = {"decoder": size.layers, "encoder": size.encoder_layers}
        self.init_std, self.document_masks = model.init_std, model.document_masks
        retrieval_layers = set(size.cca_layers)
        device = torch.empty(0).device  # the default, or that of an enclosing `with torch.device(...)`
        with torch.device("meta"):  # so that weights are drawn once, below, and not first by each module
            self.embedding = nn.Embedding(vocabulary_size, size.width)
            self.layers = nn.ModuleList(
                DecoderLayer(size, model, retrieval=number in retrieval_layers) for number in range(1, size.layers + 1)
            )
            self.norm = RMSNorm(size.width, eps=model.norm_eps)
            self.readout = None if model.tied_readout else nn.Linear(size.width, vocabulary_size, bias=False)
            self.encoder = NeighborEncoder(size, model, vocabulary_size) if retrieval_layers else None
        self.to_empty(device=device)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew; this also fills a model built on the meta device, after `to_empty`.

        Retrieval parameters are drawn last, so with the same seed a RETRO and a baseline of the same size start from
        the same decoder.
        """
        retrieval = dict(self.retrieval_parameters())
        others = {name: parameter for name, parameter in self.named_parameters() if name not in retrieval}
        draw((others | retrieval).items(), self.init_std, self.layer_counts)

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
        """Compute the final hidden states, as `LanguageModel.forward` says."""
        if cache is None:
            self._check_documents(tokens, documents)
        else:
            padding = cache.begin(tokens, padding, documents)
        past = [None] * len(self.layers) if cache is None else cast("DecoderCache", cache.decoder).layers
        start = 0 if cache is None else cache.length
        is_text, visible = None, documents
        if padding is not None:
            is_text = torch.arange(start + tokens.shape[1], device=tokens.device) >= padding[:, None]
            tokens, visible = tokens.masked_fill(~is_text[:, start:], 0), _apart(is_text, documents)
        retrieved = self._retrieved(tokens, neighbors, neighbor_lengths, documents, is_text, cache, windows)
        hidden = self.embedding(tokens)
        if cache is None:
            to_past = self.distances.to_past(tokens.shape[1], tokens.shape[1], hidden)
        else:
            to_past = cast("DecoderCache", cache.decoder).distances(tokens.shape[1], hidden)
        for layer, of_layer in zip(cast("Iterable[DecoderLayer]", self.layers), past, strict=True):
            hidden = layer.attention(hidden, distances=to_past, documents=visible, past=of_layer)
            if layer.cca is not None and retrieved is not None:
                attended = retrieved.attend(layer.cca, hidden)
                hidden = hidden if attended is None else attended
            hidden = layer.feed_forward(hidden)
        if cache is not None:
            cache.length += tokens.shape[1]
        return cast("Tensor", self.norm(hidden))

    def empty_cache(self, *, padding_in_grid: bool = False) -> Cache:
        """Return a cache of no tokens."""
        decoder = DecoderCache(self.distances, len(self.layers))
        neighbors = None if self.encoder is None else NeighborCache(self.chunk_length)
        return Cache(self.chunk_length, decoder, neighbors, padding_in_grid=padding_in_grid)

    @property
    def readout_weight(self) -> Tensor:
        """Weight [V, D] of READ: the embedding table if it is tied."""
        return self.embedding.weight if self.readout is None else self.readout.weight


def _apart(is_text: Tensor, documents: Tensor | None) -> Tensor:
    """Return documents [B, N] in which the padding of a sequence is a document of its own.

    Attention is kept within documents. In this way padding attends to padding, so that no token is without keys.
    """
    if documents is None:
        return is_text.long()
    return documents.masked_fill(~is_text, -1)
