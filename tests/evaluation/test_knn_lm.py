"""kNN-LM is what its formula says, by brute force over all hidden states, and its datastore is built once."""

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from in_process import furnish, run, small
from pipeline import RandomSentences

from retro_lab.artifacts.manifest import Manifest
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.documents_stage import DocumentsStage
from retro_lab.corpus.tokenizer import ByteBPE
from retro_lab.corpus.tokenizer_stage import TokenizerStage
from retro_lab.corpus.tokens import TokensStage, TokenStore
from retro_lab.errors import ConfigurationError, DivergenceError
from retro_lab.evaluation import hidden_states
from retro_lab.evaluation.config import KnnLmConfig
from retro_lab.evaluation.hidden_states import HiddenStates, HiddenStatesStage, Reader
from retro_lab.evaluation.knn_lm import ALPHA_FACTORS, INTERPOLATIONS, Datastore, TokenEvidence, score, tune
from retro_lab.model.config import ModelConfig, SizeConfig
from retro_lab.model.sharding import whole_weights
from retro_lab.report.comparison import run_table
from retro_lab.retrieval.config import IndexConfig, Value
from retro_lab.runs.records import ModelRecord, load_run
from retro_lab.runs.trained_model import ModelSettings, open_model, save_model

M, LENGTH, STRIDE, WIDTH, K = 8, 32, 16, 8, 5


@dataclass
class Lab:
    """Three splits as tokens, and a baseline with random weights."""

    artifacts: ArtifactStore
    stores: dict[str, TokenStore]
    reader: Reader

    def datastore(self, documents: int | None = None, **index: Any) -> Datastore:
        store = self.stores["train"]
        config = IndexConfig(**{"factory": "Flat"} | index)
        count = store.documents if documents is None else documents
        return Datastore(self.artifacts, self.reader, store, count, self.stores["validation"], config, K, 0)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("knn_lm")
    artifacts = ArtifactStore(folder / "artifacts")
    documents = artifacts.build(DocumentsStage(RandomSentences(documents=16, longest=80)))
    tokenizer = artifacts.build(TokenizerStage(ByteBPE(300, 1e6), documents))
    stores = {
        split: TokenStore(artifacts.build(TokensStage(documents, tokenizer, split, M, 0)), tokenizer)
        for split in ("train", "validation", "test")
    }
    size = SizeConfig(
        name="small", width=WIDTH, ffw_width=16, heads=2, head_size=4, layers=2, cca_layers=[], encoder_layers=1,
        encoder_width=8, encoder_ffw_width=8, encoder_heads=1, encoder_head_size=4,
    )  # fmt: skip
    settings = ModelSettings(
        size=size,
        model=ModelConfig(chunk_length=M, init_std=0.5),
        vocabulary_size=stores["train"].tokenizer.vocabulary_size,
        k=0,
        value=Value.neighbor_and_continuation,
        sequence_length=LENGTH,
    )
    torch.manual_seed(0)
    model = settings.build()
    torch.nn.init.uniform_(model.norm.weight, 0.5, 1.5)  # else all states have the same norm
    save_model(folder / "baseline", whole_weights(model), settings, stores["train"].tokenizer)
    reader = Reader(folder / "baseline", WIDTH, "32-true", LENGTH, STRIDE, batch_size=3, document_masks=False)
    return Lab(artifacts, stores, reader)


def naive(lab: Lab, split: str, dtype: torch.dtype = torch.float32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return states, log-probabilities of the whole vocabulary and targets, token by token, from one window each."""
    store, model = lab.stores[split], open_model(lab.reader.folder).model.to(dtype)
    states, levels, targets = [], [], []
    for document in range(store.documents):
        start, length = int(store.document_start[document]), int(store.document_length[document])
        tokens = store.read(np.arange(start, int(store.document_start[document + 1]))).ravel()[:length].astype(np.int64)
        for place in range(1, length):
            first = max(0, -(-(place - LENGTH) // STRIDE)) * STRIDE
            with torch.no_grad():
                hidden = model(torch.from_numpy(tokens[None, first:place]))[0, -1]
                levels.append(model.logits(hidden).double().log_softmax(0).numpy())
            states.append(hidden.float().numpy())
            targets.append(tokens[place])
    return np.stack(states), np.stack(levels), np.array(targets)


@pytest.mark.parametrize(
    ("precision", "dtype", "tolerance"),
    [
        ("32-true", torch.float32, 2e-3),
        ("64-true", torch.float64, 2e-3),
        ("bf16-true", torch.bfloat16, 0.2),
        ("bf16-mixed", torch.float32, 0.2),
    ],
)
def test_states_are_those_of_each_token_in_its_own_window(
    lab: Lab, precision: str, dtype: torch.dtype, tolerance: float
) -> None:
    store = lab.stores["test"]
    reader = replace(lab.reader, precision=precision)
    found = HiddenStates(lab.artifacts.build(HiddenStatesStage(reader, store, store.documents)))
    states, levels, targets = naive(lab, "test", dtype)
    np.testing.assert_array_equal(found.tokens, targets)
    np.testing.assert_allclose(found.range(0, found.chunks), states, atol=tolerance)
    expected = -levels[np.arange(len(targets)), targets]
    # Numbers of 16 bits round each of many logits: the whole text has to agree, and each token roughly.
    np.testing.assert_allclose(found.nats, expected, atol=4 * tolerance)
    assert found.nats.mean() == pytest.approx(expected.mean(), rel=tolerance / 10)
    assert found.norm_spread == pytest.approx((states.astype(np.float64) ** 2).sum(1).std(), rel=tolerance)


@pytest.fixture(scope="module")
def brute(lab: Lab) -> tuple[np.ndarray, ...]:
    """All distances between the states of the test split and those of the training split, with what follows each."""
    keys, _, values = naive(lab, "train")
    queries, levels, targets = naive(lab, "test")
    keys, queries = (states.astype(np.float16).astype(np.float64) for states in (keys, queries))
    return ((queries[:, None] - keys) ** 2).sum(-1), values, levels, targets


@pytest.mark.parametrize("index", [{}, {"factory": "IVF8,SQ8", "search": "nprobe=8"}], ids=["exact", "coarse"])
def test_probabilities_are_those_of_brute_force(lab: Lab, brute: tuple[np.ndarray, ...], index: dict[str, str]) -> None:
    distances, values, levels, targets = brute
    evidence = lab.datastore(**index).evidence_of(lab.stores["test"], lab.reader.stride)
    order = np.argsort(distances, axis=1, kind="stable")
    near = np.take_along_axis(distances, order, 1)
    exact = not index
    if exact:
        np.testing.assert_allclose(np.sort(evidence.distances, 1), near[:, :K], rtol=0.01, atol=0.01)
    # Where the next neighbor is as near as the last one, as after the marker of every document, either will do.
    clear = near[:, K] > near[:, K - 1] * 1.01 + 0.01
    assert 0.2 < clear.mean() < 1
    one_hot = np.eye(levels.shape[1])[values[order[:, :K]]]
    for interpolation, alpha in ((0.25, 0.5), (0.9, 0.05)):
        weights = np.exp(-alpha * near[:, :K])
        neighbors = np.einsum("tk,tkv->tv", weights, one_hot) / weights.sum(1, keepdims=True)
        mixed = interpolation * neighbors + (1 - interpolation) * np.exp(levels)
        np.testing.assert_allclose(mixed.sum(1), 1)
        expected = -np.log(mixed[np.arange(len(targets)), targets])
        found = evidence.mixed_nats(interpolation, alpha)
        if exact:
            np.testing.assert_allclose(found[clear], expected[clear], atol=0.02)
        else:
            assert np.median(np.abs(found - expected)) < 0.05


def test_without_weight_it_is_the_model_alone_in_each_chunk(lab: Lab) -> None:
    store, datastore = lab.stores["test"], lab.datastore()
    _, levels, targets = naive(lab, "test")
    nats = -levels[np.arange(len(targets)), targets]
    windows = datastore.windows(store, lab.reader.stride)
    found = score(windows, datastore.evidence_of(store, lab.reader.stride).mixed_nats(0, 1))
    chunks = windows.chunk_scores(found)
    assert int(found.bytes) == store.facts.bytes
    assert int(found.documents) == store.documents
    lengths = np.asarray(store.document_length) - 1
    by_document = [part.sum() for part in np.split(nats, np.cumsum(lengths)[:-1])]
    np.testing.assert_allclose(chunks.by_document().nats, by_document, rtol=1e-5)
    np.testing.assert_array_equal(chunks.by_document().tokens, lengths)


def test_a_smaller_database_has_fewer_documents_and_their_tokens(lab: Lab) -> None:
    store = lab.stores["train"]
    part, whole = lab.datastore(documents=4).states, lab.datastore().states
    assert part.chunks == int((store.document_length[:4] - 1).sum()) < whole.chunks
    np.testing.assert_array_equal(part.tokens, whole.tokens[: part.chunks])


def test_a_text_never_finds_itself(lab: Lab) -> None:
    ids = {split: set(store.document_ids(np.arange(store.documents))) for split, store in lab.stores.items()}
    assert not ids["train"] & (ids["validation"] | ids["test"])
    with pytest.raises(ValueError, match="is the database"):
        lab.datastore().neighbors_of(lab.stores["train"], lab.reader.stride)


def test_more_neighbors_than_tokens_are_refused(lab: Lab) -> None:
    store = lab.stores["train"]
    tokens = int((store.document_length[:1] - 1).sum())
    with pytest.raises(ConfigurationError, match=rf"evaluation.knn_lm.k={tokens + 1} is more than the {tokens} tokens"):
        Datastore(lab.artifacts, lab.reader, store, 1, lab.stores["validation"], IndexConfig(), tokens + 1, 0)


def test_fewer_probed_lists_than_needed_still_find_k(lab: Lab) -> None:
    datastore = lab.datastore(factory="IVF64,Flat", search="nprobe=1")
    assert datastore.index.facts.factory == "IVF64,Flat"
    assert np.isfinite(datastore.evidence_of(lab.stores["test"], lab.reader.stride).distances).all()


def test_states_that_are_not_finite_are_refused(lab: Lab, tmp_path: Path) -> None:
    opened = open_model(lab.reader.folder)
    with torch.no_grad():
        opened.model.norm.weight[:] = 1e6
    save_model(tmp_path / "model", whole_weights(opened.model), opened.settings, opened.tokenizer)
    stage = HiddenStatesStage(replace(lab.reader, folder=tmp_path / "model"), lab.stores["test"], 1)
    with pytest.raises(DivergenceError, match=r"not finite numbers of 16 bits"):
        ArtifactStore(tmp_path / "artifacts").build(stage)


def test_a_killed_build_goes_on_at_its_last_shard(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden_states, "SHARD_TOKENS", 3 * STRIDE)
    stages = [HiddenStatesStage(lab.reader, lab.stores["train"], lab.stores["train"].documents) for _ in range(3)]
    shards = len(stages[0].shard_sizes())
    assert shards > 5
    written: list[int] = []
    write = HiddenStatesStage.write_shard

    def dies(self: HiddenStatesStage, shard: int, folder: Path, advance: Any) -> Any:
        if len(written) == 3:
            (folder / "embeddings.npy").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(shard)
        return write(self, shard, folder, advance)

    monkeypatch.setattr(HiddenStatesStage, "write_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        ArtifactStore(tmp_path / "killed").build(stages[0])
    monkeypatch.setattr(HiddenStatesStage, "write_shard", lambda *args: written.append(args[1]) or write(*args))
    resumed = ArtifactStore(tmp_path / "killed").build(stages[1])
    assert sorted(written) == list(range(shards))
    monkeypatch.setattr(HiddenStatesStage, "write_shard", write)
    whole = ArtifactStore(tmp_path / "whole").build(stages[2])
    checksums = [{name: entry.sha256 for name, entry in found.manifest.files.items()} for found in (resumed, whole)]
    assert checksums[0] == checksums[1]
    # In shards of other sizes the states are the same.
    one = HiddenStates(lab.datastore().states.artifact)
    many = HiddenStates(resumed)
    np.testing.assert_array_equal(many.range(0, many.chunks), one.range(0, many.chunks))
    chosen = np.random.default_rng(0).integers(many.chunks, size=(7, 3))
    np.testing.assert_array_equal(many.rows(chosen), one.rows(chosen))
    assert many.norm_spread == pytest.approx(one.norm_spread, rel=1e-3)


def test_stages_travel_without_what_they_have_loaded(lab: Lab) -> None:
    stage = HiddenStatesStage(lab.reader, lab.stores["test"], 2)
    stage.prepare()
    text = pickle.dumps(stage)
    assert len(text) < 60_000
    assert pickle.loads(text).fingerprint == stage.fingerprint


def test_other_weights_are_another_datastore(lab: Lab, tmp_path: Path) -> None:
    opened = open_model(lab.reader.folder)
    with torch.no_grad():
        opened.model.norm.weight[0] += 1
    save_model(tmp_path, whole_weights(opened.model), opened.settings, opened.tokenizer)
    stages = [
        HiddenStatesStage(reader, lab.stores["test"], 2)
        for reader in (lab.reader, replace(lab.reader, folder=tmp_path), replace(lab.reader, precision="bf16-true"))
    ]
    assert len({stage.fingerprint for stage in stages}) == 3


VOCABULARY = 6


@st.composite
def texts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Log-probabilities [T, V] of a model, distances and tokens of neighbors [T, k], and targets [T]."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    tokens, k = draw(st.integers(1, 12)), draw(st.integers(1, 7))
    levels = random.normal(0, draw(st.floats(0.1, 5)), (tokens, VOCABULARY))
    levels -= np.logaddexp.reduce(levels, 1, keepdims=True)
    distances = np.sort(random.gamma(2, draw(st.floats(1e-6, 1e6)), (tokens, k)).astype(np.float32), 1)
    distances[random.random((tokens, k)) < 0.2] = np.inf
    distances[:, 0] = np.minimum(distances[:, 0], 1.0)
    return levels, distances, random.integers(VOCABULARY, size=(tokens, k)), random.integers(VOCABULARY, size=tokens)


def each_token(text: tuple[np.ndarray, ...]) -> Iterator[TokenEvidence]:
    """Evidence for each token of the vocabulary in the place of the target."""
    levels, distances, found, _ = text
    for token in range(VOCABULARY):
        yield TokenEvidence(-levels[:, token], distances, found == token)


@given(texts(), st.floats(0, 1, exclude_max=True), st.floats(1e-6, 1e6))
def test_probabilities_sum_to_one(text: tuple[np.ndarray, ...], interpolation: float, alpha: float) -> None:
    neighbors = [evidence.neighbor_probability(alpha) for evidence in each_token(text)]
    np.testing.assert_allclose(sum(neighbors), 1, rtol=1e-9)
    mixed = [np.exp(-evidence.mixed_nats(interpolation, alpha)) for evidence in each_token(text)]
    np.testing.assert_allclose(sum(mixed), 1, rtol=1e-9)
    for evidence, near, both in zip(each_token(text), neighbors, mixed, strict=True):
        np.testing.assert_allclose(
            both, interpolation * near + (1 - interpolation) * np.exp(-evidence.nats), rtol=1e-7, atol=1e-300
        )
        np.testing.assert_array_equal(evidence.mixed_nats(0, alpha), evidence.nats)


@given(texts(), st.floats(1e-4, 1e2))
def test_tuning_finds_the_best_of_what_is_tried_one_after_the_other(
    text: tuple[np.ndarray, ...], first_alpha: float
) -> None:
    levels, distances, found, targets = text
    evidence = TokenEvidence(-levels[np.arange(len(targets)), targets], distances, found == targets[:, None])
    interpolation, alpha = tune(evidence, KnnLmConfig(k=1), first_alpha)

    def level(weight: float, rate: float) -> float:
        return float(evidence.mixed_nats(weight, rate).sum())

    assert level(interpolation, first_alpha) <= min(level(weight, first_alpha) for weight in INTERPOLATIONS) + 1e-9
    assert level(interpolation, alpha) <= min(level(interpolation, first_alpha * f) for f in ALPHA_FACTORS) + 1e-9
    assert level(interpolation, alpha) <= evidence.nats.sum() + 1e-9  # no weight at all is among what is tried
    given_weight, best_alpha = tune(evidence, KnnLmConfig(k=1, interpolation=0.3), first_alpha)
    assert given_weight == 0.3
    assert level(0.3, best_alpha) <= level(0.3, first_alpha) + 1e-9
    assert tune(evidence, KnnLmConfig(k=1, interpolation=0.3, alpha=2.5), 1.0) == (0.3, 2.5)
    assert tune(evidence, KnnLmConfig(k=1, alpha=2.5), float("inf"))[1] == 2.5


def test_tuning_has_to_begin_somewhere(lab: Lab) -> None:
    evidence = TokenEvidence(np.ones(1), np.ones((1, 1)), np.ones((1, 1), bool))
    with pytest.raises(ConfigurationError, match=r"set evaluation\.knn_lm\.alpha"):
        tune(evidence, KnnLmConfig(k=1), float("inf"))


def test_a_command_adds_the_row_once(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(furnish(tmp_path, tiny_bert))
    alone = ["+experiment=quickstart", "task=train", "evaluation.knn_lm.k=4", "name=alone"]
    assert run([*alone, *small(alone)], monkeypatch) == 2
    assert "evaluation.knn_lm.k=4 is over a run's baseline, which this command does not score" in capfd.readouterr().err
    assert not Path("outputs/alone/retro").exists()
    command = ["+experiment=quickstart", "name=small", "retrieval.k=0", "corpus=local", "corpus.path=my.jsonl"]
    command += ["logger=none", "evaluation.knn_lm.k=4", "trainer.precision=bf16-mixed"]
    assert run([*command, "task=train", *small(command)], monkeypatch) == 0, capfd.readouterr().err
    folder = Path("outputs/small")
    own, mixed = load_run(folder).baseline.evaluations
    assert own.knn is None
    assert mixed.knn.k == 4
    assert mixed.knn.tuned_on
    assert (mixed.text, mixed.tokens, mixed.bytes) == (own.text, own.tokens, own.bytes)
    assert not list(Path("artifacts").glob("embeddings")), "the chunks of RETRO's database are not needed"
    before = {path: path.stat().st_mtime_ns for path in Path("artifacts").glob("*/*/manifest.json")}

    # What is known is not measured again; without weight the row is the baseline's.
    weightless = [*command, "task=evaluate", *small(command), "evaluation.knn_lm.interpolation=0"]
    weightless += ["evaluation.knn_lm.alpha=1"]
    assert run(weightless, monkeypatch) == 0, capfd.readouterr().err
    loaded = load_run(folder)
    first, second, third = loaded.baseline.evaluations
    assert (first, third) == (own, mixed)
    assert second.knn.tuned_on is None
    assert second.bits_per_byte == pytest.approx(own.bits_per_byte, rel=1e-6)
    assert before == {path: path.stat().st_mtime_ns for path in Path("artifacts").glob("*/*/manifest.json")}
    rows = {row[0]: dict(zip(run_table(loaded).keys, row, strict=True)) for row in run_table(loaded).rows}
    assert list(rows) == ["Baseline", "kNN-LM", "kNN-LM (2)"]
    assert rows["Baseline"]["gain_bits_per_byte"] is None
    assert rows["kNN-LM"]["gain_bits_per_byte"] == pytest.approx(0, abs=1e-4)
    tuned = rows["kNN-LM (2)"]
    assert tuned["k"] == 4
    assert tuned["gain_bits_per_byte"] == pytest.approx(own.bits_per_byte - mixed.bits_per_byte)
    assert tuned["gain_low"] <= tuned["gain_bits_per_byte"] <= tuned["gain_high"]
    assert Manifest.read(next(Path("artifacts/hidden_states").iterdir())).facts["norm_spread"] > 0
    older = json.loads(loaded.baseline.to_json())
    for entry in older["evaluations"]:
        del entry["knn"]
    assert ModelRecord.from_json(json.dumps(older)).evaluations[0] == own
    assert "kNN-LM" in "".join(path.read_text() for path in (folder / "report").rglob("*.md"))
