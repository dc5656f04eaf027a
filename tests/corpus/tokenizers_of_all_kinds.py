"""Small real tokenizers of the kinds that are in use, as the `tokenizers` library trains and stores them."""

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXT = [
    "def encode(text): return tokenizer.encode(text)  # the end of a text is </s> or <|endoftext|>",
    "The quick brown fox jumps over the lazy dog, and the dog sleeps.",
] * 5
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(special=("<|endoftext|>",), **options):
    """GPT-2's kind."""
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def with_added_tokens():
    """Byte-level, with added tokens of every flag: special or not, and taking the spaces around them in or not."""
    tokenizer = byte_level(["<|endoftext|>", "<fim>"])
    tokenizer.add_tokens(
        [AddedToken("<tool>", lstrip=True, rstrip=True), AddedToken("  "), AddedToken("Foo", single_word=True)]
    )
    tokenizer.add_tokens([AddedToken("<norm>", normalized=False, lstrip=True)])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True, normalized=True)])
    return tokenizer


def marker_not_special():
    """Byte-level, whose end-of-text token was exported as a token like any other."""
    tokenizer = byte_level(())
    tokenizer.add_tokens([AddedToken("<|endoftext|>", normalized=False)])
    return tokenizer


def sentencepiece_bpe():
    """Llama 2's kind; by its merges, the text `</s>` is the token of that name."""
    pieces = ["<unk>", "<s>", "</s>", *BYTES, "▁", "<", "/", "s", ">", "a", "</", "s>", "▁a"]
    merges = [("<", "/"), ("s", ">"), ("</", "s>"), ("▁", "a")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def unigram():
    """SentencePiece's other kind, which has its control tokens among the pieces of text."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((byte, -9.0) for byte in BYTES)]
    pieces += [("▁", -3.0), ("a", -3.0), ("s", -4.0), ("<", -5.0), (">", -5.0), ("/", -5.0), ("▁a", -3.5)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def whole_words():
    """Byte-level, which takes a word that is in the vocabulary as it is, as Llama 3 does."""
    return byte_level(["<|endoftext|>", "word"], ignore_merges=True)


def word_level():
    """Words of a list, and one token for all others."""
    names = ["[UNK]", "[CLS]", "[SEP]", "the", "dog"]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]"])
    return tokenizer


def uncased_word_piece():
    """BERT's kind."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


LOSSLESS = {
    "byte_level": (byte_level, "<|endoftext|>"),
    "with_added_tokens": (with_added_tokens, "<|endoftext|>"),
    "marker_not_special": (marker_not_special, "<|endoftext|>"),
    "sentencepiece_bpe": (sentencepiece_bpe, "</s>"),
    "unigram": (unigram, "</s>"),
    "whole_words": (whole_words, "word"),
}
SENTENCEPIECE = {"sentencepiece_bpe", "unigram"}
BYTE_LEVEL = LOSSLESS.keys() - SENTENCEPIECE
LOSSY = {"word_level": (word_level, "[CLS]"), "uncased_word_piece": (uncased_word_piece, "[CLS]")}
KINDS = LOSSLESS | LOSSY
"""How each is made, and its own token for the start or the end of a text."""


@cache
def made(kind):
    """Return the tokenizer of a kind, and its token for the start or the end of a text."""
    make, marker = KINDS[kind]
    return make(), marker
