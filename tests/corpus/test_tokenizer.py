"""What no text may do to a tokenizer, of whatever kind: become the document marker, or come back as another text."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers_of_all_kinds import BYTE_LEVEL, KINDS, LOSSLESS, SENTENCEPIECE, byte_level, made

from retro_lab.corpus.round_trip import differences
from retro_lab.corpus.tokenizer import ByteBPE, DocumentTokenizer
from retro_lab.errors import ConfigurationError

PIECES = [
    *("<|endoftext|>", "<|", "endoftext", "|>", "</s>", "</", "s>", "<s>", "<unk>", "<0x0A>", "<mask>", "<tool>"),
    *(
        "<norm>",
        "<fim>",
        "Foo",
        "word",
        "[CLS]",
        "[SEP]",
        "[UNK]",
        "##a",
        " ",
        "  ",
        "\n",
        "\t",
        "\0",
        "▁",
        "Ġ",
        "a",
        "é",
    ),
]
texts_of_pieces = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), min_size=1, max_size=8).map("".join)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return the tokenizer of a kind as it is after it was adapted, saved and loaded."""
    tokenizers = {}

    def load(kind):
        if kind not in tokenizers:
            folder = tmp_path_factory.mktemp(kind)
            DocumentTokenizer.adapt(*made(kind)).save(folder)
            tokenizers[kind] = DocumentTokenizer.load(folder)
        return tokenizers[kind]

    return load


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts_of_pieces)
def test_no_text_holds_the_marker(saved, kind, text):
    tokenizer = saved(kind)
    (ids,) = tokenizer.encode([text])
    assert ids[0] == tokenizer.document_marker
    assert tokenizer.document_marker not in ids[1:]
    assert ids.max() < tokenizer.vocabulary_size


@pytest.mark.parametrize("kind", LOSSLESS)
@given(text=texts_of_pieces)
def test_every_text_comes_back(saved, kind, text):
    if kind in SENTENCEPIECE:  # cannot tell these from what it writes for a space and for a byte
        text = text.replace("▁", "_").replace("<0x", "<")
    tokenizer = saved(kind)
    assert not differences([text], tokenizer.decode(tokenizer.encode([text])))


@pytest.mark.parametrize("text", ["a<|endoftext|>b", "<|endoftext|>", "a </s> b", "  <tool>  <mask> <norm>  Foo"])
def test_a_byte_level_tokenizer_gives_back_the_very_text(saved, text):
    for kind in ("byte_level", "with_added_tokens", "marker_not_special"):
        tokenizer = saved(kind)
        assert tokenizer.decode(tokenizer.encode([text])) == [text]


@pytest.mark.parametrize("kind", KINDS)
def test_saving_and_loading_change_nothing(saved, tmp_path, kind):
    made_now = DocumentTokenizer.adapt(*made(kind))
    texts = ["".join(PIECES), *PIECES]
    for one, other in zip(made_now.encode(texts), saved(kind).encode(texts), strict=True):
        np.testing.assert_array_equal(one, other)
    assert saved(kind).checksum == made_now.checksum


def test_a_token_that_no_text_can_be_stays_the_marker_and_others_give_way_to_a_new_id():
    own = {kind: made(kind)[0].token_to_id(made(kind)[1]) for kind in KINDS}
    markers = {kind: DocumentTokenizer.adapt(*made(kind)).document_marker for kind in KINDS}
    kept = {kind for kind in KINDS if markers[kind] == own[kind]}
    assert kept == {"byte_level", "with_added_tokens", "marker_not_special"}
    for kind in KINDS.keys() - kept:
        assert markers[kind] == made(kind)[0].get_vocab_size()
    assert DocumentTokenizer.adapt(byte_level(()), None).document_marker == byte_level(()).get_vocab_size()


def test_what_the_file_says_of_truncation_padding_and_dropout_is_not_done():
    plain = byte_level()
    other = Tokenizer.from_str(plain.to_str())
    other.enable_truncation(4)
    other.enable_padding(length=64)
    other.model.dropout = 0.5
    one, two = (DocumentTokenizer.adapt(tokenizer, "<|endoftext|>") for tokenizer in (plain, other))
    text = "the quick brown fox jumps over the lazy dog"
    np.testing.assert_array_equal(*(tokenizer.encode([text])[0] for tokenizer in (one, two)))
    assert one.checksum == two.checksum
    assert other.truncation is not None


def test_the_marker_and_the_vocabulary_are_in_the_checksum():
    tokenizer = byte_level(["<|endoftext|>", "<other>"])
    checksums = {DocumentTokenizer.adapt(tokenizer, marker).checksum for marker in ("<|endoftext|>", "<other>", None)}
    assert len(checksums) == 3
    assert DocumentTokenizer.adapt(byte_level(), "<|endoftext|>").checksum not in checksums


def test_a_marker_that_the_tokenizer_has_not_is_refused():
    with pytest.raises(ConfigurationError, match="no token '<none>'"):
        DocumentTokenizer.adapt(byte_level(), "<none>")


@pytest.mark.parametrize(
    ("largest", "dtype"), [(65_534, np.uint16), (65_535, np.uint16), (65_536, np.uint32), (70_000, np.uint32)]
)
def test_the_type_holds_every_id_though_some_are_left_out(tmp_path, largest, dtype):
    words = Tokenizer(models.WordLevel({"one": 0, "two": largest}, unk_token="one"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["<end>"])  # the library gives it the number of tokens as its id
    tokenizer = DocumentTokenizer.adapt(words, "<end>")
    tokenizer.save(tmp_path)
    for each in (tokenizer, DocumentTokenizer.load(tmp_path)):
        assert each.vocabulary_size == max(largest, each.document_marker) + 1
        (ids,) = each.encode(["one two"])
        assert ids.dtype == dtype
        assert ids.tolist() == [each.document_marker, 0, largest]


@pytest.mark.parametrize(("size", "dtype"), [(65_535, np.uint16), (65_536, np.uint16), (65_537, np.uint32)])
def test_the_marker_counts_where_the_vocabulary_is_at_the_limit(size, dtype):
    words = Tokenizer(models.WordLevel({str(number): number for number in range(size - 1)}, unk_token="0"))
    tokenizer = DocumentTokenizer.adapt(words, None)
    assert (tokenizer.vocabulary_size, tokenizer.dtype) == (size, dtype)
    assert tokenizer.encode([str(size - 2)])[0].tolist() == [size - 1, size - 2]


def test_a_trained_tokenizer_learns_nothing_of_the_marker_from_text(tmp_path):
    trained = ByteBPE(400, 1e6).make(["<|endoftext|> <|endoftext|>"] * 50)
    trained.save(tmp_path)
    loaded = DocumentTokenizer.load(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"][0]["content"] == "<|endoftext|>"
    assert loaded.document_marker == trained.document_marker == 0
    (ids,) = loaded.encode(["a<|endoftext|>b"])
    assert ids.tolist().count(loaded.document_marker) == 1
    assert loaded.decode([ids]) == ["a<|endoftext|>b"]


@pytest.mark.parametrize(
    ("text", "decoded", "found"),
    [
        ("as it was", "as it was", []),
        ("as it was", " as it was", []),
        (" as it was", "as it was", []),
        ("  as it was", "as it was", ["'  as it was' becomes 'as it was'"]),
        ("As it was", "as it was", ["'As it was' becomes 'as it was'"]),
        ("as it was", "as it", ["'as it was' becomes 'as it'"]),
        ("a" * 100 + "é" + "b" * 100, "a" * 100 + "e" + "b" * 100, [f"{'a' * 10 + 'é' + 'b' * 19!r} becomes "]),
        ("", "a", ["'' becomes 'a'"]),
    ],
)
def test_the_difference_is_shown_where_it_begins(text, decoded, found):
    shown = differences([text], [decoded])
    assert len(shown) == len(found)
    assert all(one.startswith(other) for one, other in zip(shown, found, strict=True))


@pytest.mark.parametrize(
    "change", [normalizers.NFKC(), normalizers.Lowercase(), normalizers.StripAccents(), normalizers.Strip()]
)
def test_what_a_normalizer_changes_is_found(change):
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), change])
    adapted = DocumentTokenizer.adapt(tokenizer, "<|endoftext|>")
    texts = ["Ünder ﬁve\n"]
    assert differences(texts, adapted.decode(adapted.encode(texts)))


@pytest.mark.parametrize("kind", sorted(KINDS))
@given(text=texts_of_pieces)
def test_tokens_stand_for_the_bytes_of_their_text(saved, kind, text):
    """To the byte for those whose tokens are bytes; elsewhere but for the space that a text gets or loses in front."""
    tokenizer = saved(kind)
    (tokens,) = tokenizer.encode([text])
    (decoded,) = tokenizer.decode([tokens])
    counted = int(tokenizer.token_bytes[tokens].sum())
    if kind in BYTE_LEVEL:
        assert counted == len(text.encode())
    elif kind in LOSSLESS:
        assert counted - len(decoded.encode()) in (0, 1)
    else:
        assert counted >= 0
    assert len(tokenizer.token_bytes) == tokenizer.vocabulary_size


@pytest.mark.parametrize("kind", sorted(KINDS))
@given(text=texts_of_pieces, cut=st.integers(0, 3))
def test_the_pieces_of_a_text_add_up_to_it(saved, kind, text, cut):
    tokenizer = saved(kind)
    (tokens,) = tokenizer.encode([text])
    assert ["".join(tokenizer.pieces(tokens))] == tokenizer.decode([tokens])
    for part in (tokens[cut:], tokens[: len(tokens) - cut]):  # a chunk may begin and end within a character
        pieces = tokenizer.pieces(part)
        assert len(pieces) == len(part)
        if kind in BYTE_LEVEL:
            assert "".join(pieces) == "".join(tokenizer.decode([part]))


def test_a_character_of_several_tokens_comes_with_the_last():
    adapted = DocumentTokenizer.adapt(byte_level(), "<|endoftext|>")
    assert adapted.pieces(adapted.encode(["a€b"])[0]) == ["", "a", "", "", "€", "b"]
