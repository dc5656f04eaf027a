"""transformers' tokenizer of an export gives the ids that training gave, for tokenizers of all kinds and any text."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from tokenizers_of_all_kinds import KINDS, made
from transformers import AutoTokenizer

from retro_lab.corpus.tokenizer import DocumentTokenizer
from retro_lab.errors import ArtifactError
from retro_lab.export.tokenizer import pretrained_tokenizer

SPECIAL = ["<|endoftext|>", "<|document|>", "</s>", "<s>", "[CLS]", "<mask>", "<tool>", " <norm> ", "Foo", "  ", "word"]
TEXTS = st.lists(st.one_of(st.text(max_size=5), st.sampled_from(SPECIAL)), max_size=6).map("".join)


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory):
    """Return a function that gives a tokenizer of a kind, and its export as AutoTokenizer loads it."""
    known = {}

    def load(kind, own_marker):
        if (kind, own_marker) not in known:
            tokenizer, marker = made(kind)
            ours = DocumentTokenizer.adapt(tokenizer, marker if own_marker else None)
            folder = tmp_path_factory.mktemp("tokenizer")
            pretrained_tokenizer(ours, 64).save_pretrained(folder)
            known[kind, own_marker] = ours, AutoTokenizer.from_pretrained(folder)
        return known[kind, own_marker]

    return load


@pytest.mark.parametrize("own_marker", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
def test_ids_and_texts_are_those_of_training(reloaded, kind, own_marker, texts):
    ours, theirs = reloaded(kind, own_marker)
    wanted = [ids.tolist() for ids in ours.encode(texts)]
    assert theirs(texts)["input_ids"] == wanted
    assert theirs.decode(wanted[0][1:]) == ours.decode([ours.encode(texts)[0]])[0]
    longest = max(map(len, wanted))
    padded = theirs(texts, padding=True)
    for ids, mask, row in zip(padded["input_ids"], padded["attention_mask"], wanted, strict=True):
        assert mask == [0] * (longest - len(row)) + [1] * len(row)
        assert ids[longest - len(row) :] == row


def test_the_marker_begins_ends_and_pads(reloaded):
    ours, theirs = reloaded("sentencepiece_bpe", True)  # by its merges, "</s>" is text, so the marker is a new token
    assert theirs.bos_token_id == theirs.eos_token_id == theirs.pad_token_id == ours.document_marker
    assert theirs.bos_token == "<|document|>"
    assert len(theirs) == ours.vocabulary_size
    assert theirs.model_max_length == 64
    assert theirs.decode([ours.document_marker], skip_special_tokens=True) == ""


def test_a_marker_that_cannot_have_its_id_is_refused(tmp_path: Path):
    gaps = Tokenizer(models.WordLevel({"a": 0, "b": 7}, unk_token="a"))
    with pytest.raises(ArtifactError, match=r"no place for the document marker <\|document\|> with the id 8"):
        pretrained_tokenizer(DocumentTokenizer.adapt(gaps, None), 64)
