"""A run's tokenizer as transformers' own: the same ids for any text, with the document marker first."""

import json
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from retro_lab.corpus.tokenizer import DocumentTokenizer, plain_text
from retro_lab.errors import ArtifactError

ADDED_MARKER = "<|document|>"
"""Text of a document marker that had an id and no text."""


def pretrained_tokenizer(tokenizer: DocumentTokenizer, length: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose ids of a text are those of `DocumentTokenizer.encode`.

    The marker begins and ends documents and pads on the left. It is no text: where a text holds the same characters,
    they are encoded like others.

    Args:
        tokenizer: Of a run.
        length: Tokens that the model was trained to read at once.

    Raises:
        ArtifactError: The marker cannot be given a text of its own.
    """
    content = json.loads(tokenizer.tokenizer.to_str())
    marker = _named(content, tokenizer.document_marker)
    exported = plain_text(Tokenizer.from_str(json.dumps(content)))
    if exported.token_to_id(marker) != tokenizer.document_marker:
        raise ArtifactError(
            f"The tokenizer has no place for the document marker {marker} with the id {tokenizer.document_marker}, so "
            "it cannot be written as transformers reads it; train a run with another tokenizer."
        )
    exported.post_processor = TemplateProcessing(
        single=f"{marker} $A",
        pair=f"{marker} $A {marker} $B",
        special_tokens=[(marker, tokenizer.document_marker)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=exported,
        bos_token=marker,
        eos_token=marker,
        pad_token=marker,
        padding_side="left",
        model_max_length=length,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _named(content: dict[str, Any], identifier: int) -> str:
    """Return the text of the document marker in a `tokenizer.json`; give it one if it has none."""
    vocabulary = content["model"]["vocab"]
    pairs = (
        vocabulary.items() if isinstance(vocabulary, dict) else ((text, i) for i, (text, _) in enumerate(vocabulary))
    )
    texts = {number: text for text, number in pairs}
    texts |= {token["id"]: token["content"] for token in content["added_tokens"]}
    if identifier in texts:
        return str(texts[identifier])
    name = ADDED_MARKER
    while name in texts.values():
        name = f"<{name}>"
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"].append({"id": identifier, "content": name, **plain})
    return name
