"""A trained model as a `PreTrainedModel` with transformers' `generate`.

The model inside is the one that `open_run` opens, and computes what it computes there, to the last bit. A sequence is a
text of its own, with the document marker first; its chunks begin with the marker, after padding on the left.
"""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GenerationMixin,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from retro_lab.export.configuration import RetroConfig
from retro_lab.export.neighbors import Retrieve, neighbors_of_new_chunks
from retro_lab.export.past import Past
from retro_lab.model.language_model import LanguageModel
from retro_lab.runs.base_model import base_of
from retro_lab.runs.trained_model import ModelSettings


class RetroForCausalLM(PreTrainedModel, GenerationMixin):
    """RETRO, or its baseline, as a causal language model."""

    config_class = RetroConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    # Neighbors pass between layers beside the hidden states.
    _no_split_modules: ClassVar[list[str]] = ["RetroModel", "RetrofittedModel"]
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
        if settings.backbone is not None:  # here, as for any model of transformers, all weights are trained
            settings = replace(settings, backbone=replace(settings.backbone, frozen=False))
        # In the type of numbers that transformers has set, rather than in the one that the base was saved in.
        base = None if config.base is None else base_of(config.base, torch.get_default_dtype())
        self.model: LanguageModel = settings.build(base)
        if self.device.type != "meta":
            self._mark_initialized()  # as they are drawn already
        self.post_init()
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)  # of the base, too

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw the weights that no file gave; transformers asks for it once for each module that has such weights."""
        parameters = self._drawn()
        given = [values.clone() if getattr(values, "_is_hf_initialized", False) else None for values in parameters]
        self.model.reset_parameters()
        for parameter, values in zip(parameters, given, strict=True):
            if values is not None:
                parameter.copy_(values)
        self._mark_initialized()

    def _mark_initialized(self) -> None:
        for parameter in self._drawn():
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]

    def _drawn(self) -> list[nn.Parameter]:
        """Return the parameters that the model inside draws; a pretrained decoder in it is drawn by transformers."""
        if self.config.base is None:
            return [*self.model.parameters()]
        return [parameter for _, parameter in self.model.retrieval_parameters()]

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding of the decoder's tokens."""
        return self.model.embedding

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the read-out; None if it is the table of the input embedding."""
        if self.config.base is not None:
            return self.model.base.get_output_embeddings()  # type: ignore[union-attr, operator]
        readout = getattr(self.model, "readout", None)
        return readout if isinstance(readout, nn.Module) else None

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Refuse, as neighbors are tokens too.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "The vocabulary of a RETRO cannot be resized, as its database has the same tokens; train it with the "
            "tokenizer that it is to have."
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        neighbors: Tensor | None = None,
        neighbor_lengths: Tensor | None = None,
        past_key_values: Past | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Compute logits, and the loss if there are labels.

        Args:
            input_ids: int64 [B, N]; with `past_key_values`, the tokens after those alone.
            attention_mask: [B, N], 0 where a token is padding, at the beginning of a sequence, or, without a cache, at
                its end; None if none is. With `past_key_values` it has their tokens too. Logits of padding are
                arbitrary.
            labels: int64 [B, N], usually `input_ids`: each is predicted from the tokens before it; -100 counts for
                nothing.
            neighbors: integers [B, L, k, r], tokens of the neighbors of the complete chunks of each sequence, from its
                first token that is no padding; more than there are chunks are ignored. None turns retrieval off. With
                `past_key_values`, those of the chunks that `input_ids` complete.
            neighbor_lengths: integers [B, L, k], the real tokens of each neighbor, 0 if it is missing; None if all are
                full.
            past_key_values: What an earlier call with a cache returned; it is updated. Needs `torch.no_grad()`.
            use_cache: Whether to return a cache, a new one if none is given; None for no.
            logits_to_keep: Number of last positions, or their places, to compute logits of; 0 for all.
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
        if use_cache and past_key_values is None:
            past_key_values = Past(self.model.empty_cache())
        if past_key_values is None:
            hidden = self._hidden(input_ids, attention_mask, neighbors, neighbor_lengths)
        else:
            hidden = self._hidden_after(past_key_values, input_ids, attention_mask, neighbors, neighbor_lengths)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.model.logits(hidden[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values,
            hidden_states=(hidden,) if output_hidden_states else None,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Past | None = None,
        neighbors: Tensor | None = None,
        neighbor_lengths: Tensor | None = None,
        retrieve: Retrieve | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the arguments of the next forward pass; `generate` passes what it does not know on to here.

        Args:
            input_ids: int64 [B, N], prompts and what was generated.
            attention_mask: As in `forward`.
            past_key_values: As in `forward`.
            neighbors: As in `forward`, of the first chunks of each sequence, usually the prompt's.
            neighbor_lengths: As in `forward`.
            retrieve: Finds the neighbors of all chunks that `neighbors` leaves out, as soon as they are complete.
            kwargs: As transformers passes them.

        Raises:
            ValueError: Shapes do not fit together, or tokens in the cache are missing, whose chunks go on.
        """
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs
        )
        if neighbors is None and retrieve is None:
            return inputs
        read = 0 if past_key_values is None else past_key_values.get_seq_length()
        if input_ids.shape[1] != read + inputs["input_ids"].shape[1]:
            raise ValueError(
                f"To retrieve, input_ids must hold all tokens, those in past_key_values too: more than {read}, not "
                f"{input_ids.shape[1]}."
            )
        padding = _left_padding(attention_mask)
        inputs["neighbors"], inputs["neighbor_lengths"] = neighbors_of_new_chunks(
            input_ids,
            [0] * len(input_ids) if padding is None else padding.tolist(),
            read,
            self.model.chunk_length,
            None if neighbors is None else (neighbors, neighbor_lengths),
            retrieve,
        )
        return inputs

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Put the model's own cache into the arguments; transformers has no other kind that could hold neighbors.

        Raises:
            ValueError: Another kind is asked for.
        """
        if generation_config.cache_implementation is not None:
            raise ValueError(
                f"RetroForCausalLM has a cache of its own; leave out cache_implementation="
                f"{generation_config.cache_implementation}."
            )
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = Past(self.model.empty_cache())

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

    def _hidden_after(
        self,
        past: Past,
        tokens: Tensor,
        mask: Tensor | None,
        neighbors: Tensor | None,
        neighbor_lengths: Tensor | None,
    ) -> Tensor:
        """Return the final hidden states [B, N, D] of the tokens that follow `past`, which is updated."""
        padding = None
        if past.get_seq_length() == 0 and mask is not None:
            padding = _left_padding(mask)
            if not bool(mask[:, -1].all()):
                raise ValueError("With a cache, padding must be at the beginning of a sequence: padding_side='left'.")
        hidden: Tensor = self.model(tokens, neighbors, neighbor_lengths, padding=padding, cache=past.cache)
        return hidden


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
