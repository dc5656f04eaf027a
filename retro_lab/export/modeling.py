"""A trained model as a `PreTrainedModel` with transformers' `generate`.

The model inside is the one that `open_run` opens, and computes what it computes there, to the last bit. A sequence is a
text of its own, with the document marker first; its chunks begin with the marker, after padding on the left.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from retro_lab.export.configuration import RetroConfig
from retro_lab.model.language_model import LanguageModel
from retro_lab.runs.trained_model import ModelSettings

Retrieve = Callable[[np.ndarray], tuple[np.ndarray | Tensor, np.ndarray | Tensor]]
"""From the tokens of chunks, int64 [n, m], to what the model reads of their neighbors: tokens [n, k, r], and how many of
them are real, [n, k], 0 for a missing neighbor."""


class RetroForCausalLM(PreTrainedModel, GenerationMixin):
    """RETRO, or its baseline, as a causal language model."""

    config_class = RetroConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _no_split_modules: ClassVar[list[str]] = ["RetroModel"]  # neighbors pass between layers beside the hidden states
    _is_stateful = True  # a cache never goes back over the end of a chunk, so assisted generation is refused

    def __init__(self, config: RetroConfig) -> None:
        """Create the model with random weights.

        Args:
            config: With the settings of a model.

        Raises:
            ValueError: Settings are missing, of a wrong type or out of their range.
        """
        super().__init__(config)
        settings = TypeAdapter(ModelSettings).validate_python(config.settings)
        self.model: LanguageModel = settings.build()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw the weights that no file gave; transformers keeps `torch.nn.init` from changing any others."""
        if isinstance(module, LanguageModel):
            module.reset_parameters()

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding of the decoder's tokens."""
        return self.model.embedding

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the read-out; None if it is the table of the input embedding."""
        readout = getattr(self.model, "readout", None)
        return readout if isinstance(readout, nn.Module) else None

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Refuse, as neighbors are tokens too.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "The vocabulary of a RETRO cannot be resized: its database has the same tokens; train it with the tokenizer "
            "that it is to have."
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        neighbors: Tensor | None = None,
        neighbor_lengths: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Compute logits, and the loss if there are labels.

        Args:
            input_ids: int64 [B, N].
            attention_mask: [B, N], 0 where a token is padding, at the beginning or the end of a sequence; None if none
                is. Logits of padding are arbitrary.
            labels: int64 [B, N], usually `input_ids`: each is predicted from the tokens before it; -100 counts for
                nothing.
            neighbors: integers [B, L, k, r], tokens of the neighbors of the complete chunks of each sequence, from its
                first token that is no padding; more than there are chunks are ignored. None turns retrieval off.
            neighbor_lengths: integers [B, L, k], the real tokens of each neighbor, 0 if it is missing; None if all are
                full.
            logits_to_keep: Number of last positions, or their places, to compute logits of; 0 for all.
            use_cache: Whether to return a cache; there is none.
            output_attentions: Not supported.
            output_hidden_states: Whether to return the final hidden states.
            kwargs: Passed on to the loss, such as `num_items_in_batch`.

        Returns:
            Logits [B, N, V], and with labels the mean cross-entropy in nats.

        Raises:
            ValueError: Shapes do not fit together, or padding lies between tokens.
        """
        if output_attentions:
            raise ValueError("RetroForCausalLM does not return attentions.")
        hidden = self._hidden(input_ids, attention_mask, neighbors, neighbor_lengths)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.model.logits(hidden[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=(hidden,) if output_hidden_states else None
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        neighbors: Tensor | None = None,
        neighbor_lengths: Tensor | None = None,
        retrieve: Retrieve | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the arguments of the next forward pass; `generate` passes what it does not know on to here.

        Args:
            input_ids: int64 [B, N], prompts and what was generated.
            attention_mask: As in `forward`.
            neighbors: As in `forward`, of the first chunks of each sequence, usually the prompt's.
            neighbor_lengths: As in `forward`.
            retrieve: Finds the neighbors of all chunks that `neighbors` leaves out, as soon as they are complete.
            kwargs: As transformers passes them.
        """
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, attention_mask=attention_mask, **kwargs
        )
        if neighbors is None and retrieve is None:
            return inputs
        padding = _left_padding(attention_mask)
        starts = [0] * len(input_ids) if padding is None else padding.tolist()
        inputs["neighbors"], inputs["neighbor_lengths"] = self._neighbors(
            input_ids, starts, neighbors, neighbor_lengths, retrieve
        )
        return inputs

    def _hidden(
        self, tokens: Tensor, mask: Tensor | None, neighbors: Tensor | None, neighbor_lengths: Tensor | None
    ) -> Tensor:
        """Return the final hidden states [B, N, D] of sequences with padding on either side."""
        padding = _left_padding(mask)
        if padding is None:
            return self._read(tokens, neighbors, neighbor_lengths)
        # Chunks begin at each sequence's first token, so all sequences are moved there. What a row holds after its last
        # token no longer matters, as nothing before it attends to that.
        length, first = tokens.shape[1], int(padding.min())
        place = torch.arange(length, device=tokens.device)
        moved = (place[: length - first] + padding[:, None]) % length
        hidden = self._read(tokens.gather(1, moved), neighbors, neighbor_lengths)
        back = (place - padding[:, None]).clamp(min=0, max=length - first - 1)
        return hidden.gather(1, back[:, :, None].expand(-1, -1, hidden.shape[2]))

    def _read(self, tokens: Tensor, neighbors: Tensor | None, neighbor_lengths: Tensor | None) -> Tensor:
        documents = torch.zeros_like(tokens) if self.model.document_masks else None
        hidden: Tensor = self.model(tokens, neighbors, neighbor_lengths, documents)
        return hidden

    def _neighbors(
        self,
        tokens: Tensor,
        starts: list[int],
        given: Tensor | None,
        given_lengths: Tensor | None,
        retrieve: Retrieve | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the neighbors of the complete chunks of sequences that begin at `starts`, and their lengths."""
        m = self.model.chunk_length
        places = [
            (row, chunk, start + chunk * m)
            for row, start in enumerate(starts)
            for chunk in range((tokens.shape[1] - start) // m)
        ]
        if not places:
            return None, None
        chunks = 1 + max(chunk for _, chunk, _ in places)
        known = 0 if given is None else min(given.shape[1], chunks)
        searched = [(row, chunk, first) for row, chunk, first in places if chunk >= known and retrieve is not None]
        found = _retrieved(tokens, [(row, first) for row, _, first in searched], m, retrieve) if searched else None
        shapes = {tuple(values.shape[-2:]) for values in (given, found[0] if found else None) if values is not None}
        if len(shapes) > 1:
            raise ValueError(f"neighbors [.., k, r] and what retrieve returns differ in k or r: {sorted(shapes)}.")
        k, r = shapes.pop()
        neighbors = tokens.new_zeros(len(tokens), chunks, k, r)
        lengths = tokens.new_zeros(len(tokens), chunks, k)
        if given is not None:
            neighbors[:, :known] = given[:, :known]
            lengths[:, :known] = r if given_lengths is None else given_lengths[:, :known]
        if found:
            rows, columns = [row for row, _, _ in searched], [chunk for _, chunk, _ in searched]
            neighbors[rows, columns], lengths[rows, columns] = found
        return neighbors, lengths


def _retrieved(
    tokens: Tensor, places: list[tuple[int, int]], length: int, retrieve: Retrieve | None
) -> tuple[Tensor, Tensor]:
    """Search for the chunks that begin at `places`, equal ones once; return what is found for each."""
    assert retrieve is not None
    rows, firsts = (torch.tensor(values, device=tokens.device) for values in zip(*places, strict=True))
    offsets = torch.arange(length, device=tokens.device)
    chunks, which = tokens[rows[:, None], firsts[:, None] + offsets].unique(dim=0, return_inverse=True)
    neighbors, lengths = (torch.as_tensor(np.asarray(values)) for values in retrieve(chunks.cpu().numpy()))
    if neighbors.dim() != 3 or neighbors.shape[:2] != lengths.shape or len(neighbors) != len(chunks):
        raise ValueError(
            f"retrieve was given {len(chunks)} chunks and must return tokens [{len(chunks)}, k, r] and lengths "
            f"[{len(chunks)}, k], not {list(neighbors.shape)} and {list(lengths.shape)}."
        )
    return neighbors.to(tokens)[which], lengths.to(tokens)[which]


def _left_padding(mask: Tensor | None) -> Tensor | None:
    """Return the number of tokens of padding at the beginning of each sequence, [B]; None if there are none.

    Raises:
        ValueError: The mask is not [B, N], or there is padding between the tokens of a sequence.
    """
    if mask is None:
        return None
    if mask.dim() != 2:
        raise ValueError(f"attention_mask must be [batch, length], not {list(mask.shape)}.")
    real = mask.bool()
    begins = real[:, 0].long() + (real[:, 1:] & ~real[:, :-1]).sum(1)
    if bool((begins > 1).any()):
        raise ValueError("attention_mask has padding between the tokens of a sequence; it must be at one of its ends.")
    padding = real.long().argmax(1)
    return padding if bool(padding.any()) else None


AutoModelForCausalLM.register(RetroConfig, RetroForCausalLM, exist_ok=True)
AutoTokenizer.register(RetroConfig, tokenizer_class=PreTrainedTokenizerFast, exist_ok=True)
