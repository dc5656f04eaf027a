"""`task=plan` as a user gets it: composed, run, printed, and held against arithmetic of its own."""

import json
import re
from pathlib import Path

import pytest

from retro_lab.config.compose import compose
from retro_lab.errors import ConfigurationError
from retro_lab.runs.folder import RunFolder
from retro_lab.tasks import plan

Printed = dict[str, dict[str, list[str]]]
PAPER = ["tokenizer.vocabulary_size=128000"]
UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the task and return what it printed: cells by row, by first word of the section."""
    monkeypatch.chdir(tmp_path)
    bare = tmp_path / "experiments" / "bare.yaml"  # the paper's settings, which are the groups' own
    bare.parent.mkdir()
    bare.write_text("# Nothing of its own.\n")

    def run(*overrides: str) -> Printed:
        plan.run(compose(["task=plan", "+experiment=bare", *overrides]), RunFolder(Path()))
        printed = capsys.readouterr()
        assert printed.err == ""
        assert list(tmp_path.iterdir()) == [bare.parent]
        sections: Printed = {}
        for block in printed.out.strip().split("\n\n"):
            title, *lines = block.splitlines()
            rows = [re.split(r"\s{2,}", line.strip()) for line in lines if line.startswith("  ")]
            sections[title.split()[0]] = {name: cells for name, *cells in rows} | {"": [block]}
        return sections

    return run


def number(cell: str) -> float:
    """The value of a cell such as `13.7 G` or `1,053.5`."""
    value, _, unit = cell.replace(",", "").removesuffix("B").partition(" ")
    return float(value) * UNITS[unit]


def test_parameters_by_part(planned) -> None:
    rows = planned("size=172m", *PAPER)["Parameters"]
    d, i, f, e, j, g, v = 896, 16 * 64, 3_584, 896, 16 * 64, 3_584, 128_000
    decoder = 12 * (5 * d * i + 2 * i + 2 * d * f + 2 * d) + d
    cca = 3 * (3 * d * i + 2 * e * i + 2 * i + d)
    encoder = 2 * (5 * e * j + 2 * j + 2 * e * g + 2 * e) + (3 * e * j + 2 * d * j + 2 * j + e) + d + e
    expected = {
        "decoder": decoder,
        "chunked cross-attention": cca,
        "neighbor encoder": encoder,
        "embeddings": v * (d + e),
        "total": decoder + cca + encoder + v * (d + e),
        "without embeddings, as in Table 2": decoder + cca + encoder,
    }
    assert {name: number(rows[name][0]) for name in expected} == expected


def test_flops_and_hours_of_the_papers_largest_model(planned) -> None:
    sections = planned("size=7_5b", *PAPER)
    n, d, i, f, e, j, g, v = 2_048, 4_096, 4_096, 16_384, 896, 1_024, 3_584, 128_000
    k, r, m = 2, 128, 64
    attending = (n - m + 1) / n
    parts = {
        "self-attention": 32 * (8 * d * i + 3 * (n + 1) * i),
        "feed-forward": 32 * 4 * d * f,
        "chunked cross-attention": 9 * (attending * (4 * d * i + 4 * k * r * i + 2 * r * i) + (k * r / m) * 4 * e * i),
        "neighbor encoder": (k * r / m) * 2 * (8 * e * j + 4 * e * g + 6 * r * j)
        + (k * r / m) * (4 * e * j + 6 * m * j)
        + 4 * d * j,
        "read-out": 2 * d * v,
    }
    retrieval = {"chunked cross-attention", "neighbor encoder"}
    total = sum(parts.values())
    baseline = sum(flops for name, flops in parts.items() if name not in retrieval)
    rows = sections["FLOPs"]
    for name, flops in (parts | {"total": total}).items():
        base = {"total": baseline}.get(name, flops)
        both = ["-", "-"] if name in retrieval else pytest.approx([base, 3 * base], rel=0.005)
        cells = rows[name]
        assert [number(cell) for cell in cells[:2]] == pytest.approx([flops, 3 * flops], rel=0.005)
        assert (cells[2:] if name in retrieval else [number(cell) for cell in cells[2:]]) == both
    assert rows["overhead of retrieval"] == [f"+{total / baseline - 1:.1%}"] == ["+9.2%"]

    rows = sections["Training"]
    hours = [3 * flops * 419_430_400_000 / (0.4 * 989e12) / 3_600 for flops in (total, baseline)]
    assert [number(cell) for cell in rows["GPU hours"]] == pytest.approx(hours, abs=0.06)
    assert hours == pytest.approx([14_246, 13_022], rel=0.002)  # as planned before there was any code
    assert "200,000 steps of 1024 x 2,048 tokens" in rows[""][0]
    assert "40% of 989 TFLOP/s" in rows[""][0]


def test_utilization_peak_and_tokens_scale_the_hours(planned) -> None:
    once = planned()["Training"]
    twice = planned("task.utilization=0.8", "task.peak_tflops=494.5", "schedule.tokens=838860800000")["Training"]
    assert number(twice["GPU hours"][0]) == pytest.approx(
        2 * number(once["GPU hours"][0]), rel=0.03
    )  # two digits are printed
    assert number(twice["FLOPs"][0]) == pytest.approx(2 * number(once["FLOPs"][0]), rel=0.01)


def test_memory_under_ddp_and_fsdp(planned) -> None:
    sections = planned(
        "size=172m", *PAPER, "retrieval.k=0", "trainer=ddp", "trainer.devices=4", "trainer.num_nodes=4",
        "data.micro_batch_size=8",
    )  # fmt: skip
    rows, gpus, tokens = sections["Memory"], 16, 8 * 2_048
    d, i, f, v = 896, 1_024, 3_584, 128_000
    total, without_embeddings = (
        number(sections["Parameters"][name][0]) for name in ("total", "without embeddings, as in Table 2")
    )
    norm = (4 + 2) * d
    attention, feed_forward = norm + 4 * 2 * i, norm + 2 * f
    outside = (2 * tokens + v) * 4 * d
    activations = tokens * 12 * (attention + feed_forward) + outside
    checkpointed = tokens * (24 * 4 * d + max(attention, feed_forward) - 4 * d) + outside
    ddp = [4 * total, 4 * total, 8 * total, 2 * without_embeddings + 4 * total]
    embeddings_and_norm = (v + 1) * d  # stay gathered, with their gradient, whose sum over GPUs is larger than blocks
    fsdp = [4 * total / gpus, 4 * total / gpus, 8 * total / gpus, 3 * 4 * embeddings_and_norm]
    expected = {
        "weights": (ddp[0], fsdp[0]),
        "gradients": (ddp[1], fsdp[1]),
        "2 moments of AdamW": (ddp[2], fsdp[2]),
        "copies in use": (ddp[3], fsdp[3]),
        "activations": (activations, activations),
        "activations, checkpointed": (checkpointed, checkpointed),
        "total": (sum(ddp) + activations, sum(fsdp) + activations),
        "total, checkpointed": (sum(ddp) + checkpointed, sum(fsdp) + checkpointed),
    }
    for name, values in expected.items():
        assert [number(cell) for cell in rows[name]] == pytest.approx(values, rel=0.006), name
    assert "with 16 GPUs\n" in rows[""][0]
    assert "bf16-mixed; 8 sequences on a GPU at a time" in rows[""][0]


def fit(sections: Printed) -> str:
    """What is said to fit, in one line."""
    return " ".join(sections["Memory"][""][0].partition("total, checkpointed")[2].splitlines()[1:]).replace("  ", " ")


def test_what_fits_fits_and_twice_as_much_does_not(planned) -> None:
    given = ("size=7_5b", *PAPER, "trainer=fsdp", "trainer.devices=8", "data.batch_size=1024")
    found = fit(planned(*given))
    overrides, _, taken = found.strip().partition(" takes ")
    assert overrides.split()[:2] == ["trainer=fsdp", "trainer.devices=8"]
    assert taken == f"{taken.partition(' of ')[0]} of 80 GB"
    rows = planned("size=7_5b", *PAPER, *overrides.split(), "data.batch_size=1024")["Memory"]
    total = number(rows["total, checkpointed" if "compute" in overrides else "total"][1])
    assert total == pytest.approx(number(taken.partition(" of ")[0]), rel=0.006)
    assert total < 0.9 * 80e9
    sequences = int(re.findall(r"micro_batch_size=(\d+)", overrides)[0])
    more = planned(*given, f"data.micro_batch_size={2 * sequences}")["Memory"]
    assert number(more["total"][1]) > 0.9 * 80e9
    assert number(more["total"][0]) > 80e9


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("size=172m",), r"^trainer=gpu trainer\.devices=1 trainer\.precision=32-true data\.micro_batch_size=\d"),
        (("size=172m", "trainer=ddp", "trainer.num_nodes=2"), r"^trainer=ddp trainer\.devices=-1 trainer\.num_nodes"),
        (("size=7_5b", "trainer=gpu"), r"^nothing fits: .* of task\.gpu_memory=80 GB; use trainer=fsdp on 4 "),
        (("size=7_5b", "trainer=fsdp", "trainer.devices=8", "task.gpu_memory=20e9"), r"use trainer=fsdp on 32 GPUs"),
        (("size=7_5b", "trainer=ddp", "trainer.devices=8", "task.gpu_memory=8e9"), r"or GPUs with more memory$"),
        (("size=7_5b", "trainer=gpu", "data.batch_size=2"), r"or a data\.batch_size of 3 or more$"),
        (("size=7_5b", "trainer.devices=8", "trainer.precision=64-true"), r"^nothing fits: trainer=ddp.*more memory$"),
        (("size=1_5b", "trainer=ddp", "trainer.devices=8", "data.sequence_length=16384", "task.gpu_memory=40e9"),
         r"checkpoint_activations=true takes .* of 40 GB$"),
    ],
)  # fmt: skip
def test_a_trainer_that_fits_is_named_or_why_there_is_none(planned, overrides: tuple[str, ...], said: str) -> None:
    assert re.search(said, fit(planned(*PAPER, "data.batch_size=1024", *overrides)).strip())


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((), "with 1 GPU\n"),
        (("trainer.devices=auto",), "with 8 GPUs (trainer.devices=auto, taken as 8)"),
        (("trainer=ddp", "trainer.num_nodes=2"), "with 16 GPUs (trainer.devices=-1, taken as 8)"),
        (("trainer.devices=[0,2]",), "with 2 GPUs\n"),
        (("trainer.devices=auto", "data.batch_size=4"), "1 sequence on a GPU at a time"),
        (("trainer.precision=bf16",), "precision bf16-mixed"),
        (("trainer.precision=64-true",), "precision 64-true"),
    ],
)
def test_gpus_sequences_and_precision_are_stated(planned, overrides: tuple[str, ...], said: str) -> None:
    assert said in planned(*overrides)["Memory"][""][0]


def test_weights_are_counted_in_their_precision(planned) -> None:
    parameters = number(planned()["Parameters"]["total"][0])
    for precision, bytes_each, copies in (("32-true", 4, False), ("bf16-true", 2, False), ("16-mixed", 4, True)):
        rows = planned(f"trainer.precision={precision}")["Memory"]
        assert number(rows["weights"][0]) == pytest.approx(bytes_each * parameters, rel=0.006)
        assert (rows["copies in use"][0] != "-") == copies


def test_retrofit_keeps_gradients_and_moments_of_retrieval_weights_alone(planned) -> None:
    sections = planned("size=172m", *PAPER, "init=retrofit")
    parts, rows = sections["Parameters"], sections["Memory"]
    # The encoder's embeddings are retrieval weights too; the decoder's are as wide and stay frozen.
    trained = sum(number(parts[name][0]) for name in ("chunked cross-attention", "neighbor encoder"))
    trained += number(parts["embeddings"][0]) / 2
    assert number(rows["weights"][0]) == pytest.approx(4 * number(parts["total"][0]), rel=0.006)
    assert number(rows["gradients"][0]) == pytest.approx(4 * trained, rel=0.006)
    assert number(rows["2 moments of AdamW"][0]) == pytest.approx(8 * trained, rel=0.006)


def test_the_papers_database(planned) -> None:
    sections = planned("size=7_5b", *PAPER, "database.tokens=1.75e12")
    rows, chunks = sections["Database"], number(sections["Database"]["chunks"][0])
    assert chunks == pytest.approx(28e9, rel=0.01)  # Table 4
    assert number(rows["as the paper stores it"][0].partition(",")[0]) == pytest.approx(93e12, rel=0.015)
    assert number(rows["tokens"][0]) == pytest.approx(chunks * (64 * 4 + 4), rel=0.01)
    assert number(rows["embeddings"][0]) == pytest.approx(chunks * 768 * 2, rel=0.006)
    searched = 419_430_400_000 / 64 * (1 + 31.5 / 983)
    assert number(rows["neighbors"][0]) == pytest.approx(searched * 100 * (8 + 4), rel=0.06)
    assert number(rows["GPU hours to embed"][0]) == pytest.approx(chunks / 1_728 / 3_600, abs=0.06)
    assert re.match(r"28 x IVF131072_HNSW32,PQ384x4fs,Refine\(SQ8\)", rows["index family"][0])
    assert number(rows["index"][0]) == pytest.approx(chunks * (384 / 2 + 8 + 768), rel=0.01)
    assert number(rows["memory to search"][0].removesuffix(" at a time")) <= 1e12
    assert number(rows["CPU hours to search"][0]) == pytest.approx(28 * searched / 250 / 3_600, rel=0.01)


def test_the_papers_wikipedia(planned) -> None:
    """215 GB for 4 billion tokens (Sec. 4.1), of documents as long as Table 8 has them."""
    rows = planned("size=7_5b", *PAPER, "database.tokens=3.977e9", "task.tokens_per_document=634.6")["Database"]
    assert number(rows["chunks"][0]) == pytest.approx(0.06e9, rel=0.09)  # "0.06B" in Table 4
    assert number(rows["as the paper stores it"][0].partition(",")[0]) == pytest.approx(215e9, rel=0.015)


def test_index_shards_fit_into_memory_and_ranks_share_the_work(planned) -> None:
    given = ("size=7_5b", *PAPER, "database.tokens=1e9", "schedule.tokens=1e9")
    one = planned(*given, "trainer.devices=8")
    assert one["Layout"]["index shards"][0].startswith("1 of ")
    sections = planned(*given, "task.index_memory=1e9", "trainer.devices=8", "trainer.num_nodes=4")
    rows, layout = sections["Database"], sections["Layout"]
    shards = int(layout["index shards"][0].partition(" ")[0])
    whole = number(one["Database"]["index"][0])
    assert whole / 1e9 <= shards <= whole / 1e9 * 1.1 + 1
    assert number(rows["memory to search"][0].removesuffix(" at a time")) <= 1e9
    assert rows["index family"][0].startswith(f"{shards} x ")
    assert layout["ranks"] == ["32, each with a GPU"]
    assert int(layout["embedding shards"][0].partition(",")[0]) >= 32  # work for every rank
    hours = number(rows["GPU hours to embed"][0])
    assert number(layout["hours to embed"][0]) == pytest.approx(hours / 32, abs=0.06)


def test_a_share_of_the_database(planned) -> None:
    whole, tenth = planned()["Database"], planned("database.fraction=0.1")["Database"]
    assert number(whole["chunks"][0]) == pytest.approx(10 * number(tenth["chunks"][0]), rel=1e-6)
    assert number(whole["tokens"][0]) == number(tenth["tokens"][0])  # the rest is trained on
    assert number(whole["index"][0]) > 9 * number(tenth["index"][0])


def test_the_baseline_has_no_rows_about_retrieval(planned) -> None:
    sections = planned("retrieval.k=0")
    assert set(sections) == {"Parameters", "FLOPs", "Training", "Memory"}
    printed = "\n".join(rows[""][0] for rows in sections.values()).lower()
    assert not re.search("retr(o |ieval)|neighbor|encoder|cross|database|chunk", printed)


def test_what_a_neighbor_brings_counts(planned) -> None:
    both, one = (planned(f"retrieval.value={value}")["FLOPs"] for value in ("neighbor_and_continuation", "neighbor"))
    assert number(one["neighbor encoder"][0]) < 0.55 * number(both["neighbor encoder"][0])


def test_the_vocabulary_and_where_it_is_known_from(planned) -> None:
    assert "vocabulary 4,096 (tokenizer.vocabulary_size)" in planned()["Parameters"][""][0]
    unknown = planned("size=172m", "tokenizer=gpt2")["Parameters"]
    assert "vocabulary 128,000 (the paper's; " in unknown[""][0]
    assert unknown["total"] == planned("size=172m", *PAPER)["Parameters"]["total"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule.tokens=0", r"schedule\.tokens must be positive, not 0"),
        ("database.tokens=-1", r"database\.tokens must be positive, not -1"),
        ("database.fraction=2", r"database\.fraction is a share, above 0 and up to 1, not 2"),
        ("data.sequence_length=2000", r"data\.sequence_length=2000 is not a multiple of model\.chunk_length=64"),
        ("data.sequence_length=-64", r"data\.sequence_length must be positive, not -64"),
        ("data.batch_size=0", r"data\.batch_size must be positive, not 0"),
        ("retrieval.k=-1", r"retrieval\.k must be 0 or more, not -1"),
        ("retrieval.value=both", r"retrieval\.value=both is not one of neighbor_and_continuation, "),
        ("size.cca_layers=[]", r"2 neighbors .* size\.cca_layers is empty; .* retrieval\.k=0"),
        ("size.width=7", r"size\.width must be even"),
        ("task.utilization=40", r"task\.utilization is a share, above 0 and up to 1, not 40"),
        ("task.index_memory=100", r"task\.index_memory=100 bytes cannot hold an index of even one chunk"),
        ("task.tokens_per_document=0", r"task\.tokens_per_document must be positive, not 0"),
        ("index.factory=nonsense", r"index\.factory=nonsense is not a FAISS factory string for vectors"),
        ("task.peak_tflops=0", r"task\.peak_tflops must be positive"),
        ("trainer.devices=0", r"trainer\.devices=0 leaves nothing to train on"),
        ("trainer.devices=3", r"data\.batch_size=256 cannot be divided over 3 devices; make it a multiple of 3"),
        ("trainer.num_nodes=two", r"trainer\.num_nodes must be a positive whole number, not two"),
        ("data.micro_batch_size=-2", r"data\.micro_batch_size must be positive, not -2"),
        ("trainer.devices=two", r"trainer\.devices=two is not a number of devices"),
        ("trainer.precision=16-true", r"trainer\.precision=16-true would not train: "),
        ("trainer.precision=transformer-engine", r"trainer\.precision=transformer-engine is not supported"),
        ("trainer.precision=int8", r"trainer\.precision=int8 is not one of 32-true, bf16-mixed"),
        ("tokenizer.vocabulary_size=0", r"vocabulary size must be a positive whole number, not 0"),
    ],
)
def test_values_that_cannot_be_are_refused_in_one_sentence(planned, override: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        planned(override)
    assert "\n" not in str(caught.value)


def test_the_papers_knn_lm_datastore(planned) -> None:
    """15 TB for 4 billion tokens, of 1,024 numbers of 32 bits each (Sec. 4.1): here 16 bits, and an index."""
    assert "kNN-LM" not in planned("size=172m", *PAPER)
    overrides = ("size.width=1024", "evaluation.knn_lm.k=10", "database.tokens=4e9", "evaluation.stride=512")
    rows = planned("size=172m", *overrides, *PAPER)["kNN-LM"]
    assert number(rows["states"][0]) == pytest.approx(4e9 * 1024 * 2, rel=1e-2)
    assert number(rows["index, in memory to search"][0]) > 4e9 * 1024
    assert rows["index family"][0].startswith("IVF")
    assert "4 tokens for each of its own" in rows[""][0]


WIDE = {"vocab_size": 32_000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
BASES = {
    "llama": WIDE | {"intermediate_size": 11_008, "max_position_embeddings": 4096},
    "mistral": WIDE | {"intermediate_size": 14_336, "num_key_value_heads": 8, "max_position_embeddings": 32_768},
}
"""Configurations of Llama-2-7B and Mistral-7B-v0.1."""


@pytest.mark.parametrize(("family", "parameters"), [("llama", 6_738_415_616), ("mistral", 7_241_732_096)])
def test_retrofit_of_a_pretrained_model_is_planned_from_its_configuration_alone(
    planned, tmp_path_factory: pytest.TempPathFactory, family: str, parameters: int
) -> None:
    folder = tmp_path_factory.mktemp(family)
    (folder / "config.json").write_text(json.dumps({"model_type": family} | BASES[family]))
    sections = planned("size=7_5b", "backbone=hf", f"backbone.model={folder}")
    rows = sections["Parameters"]
    new, share, base = re.search(r"new parameters: ([0-9.]+)M, ([0-9.]+)% of ([0-9.]+)B", rows[""][0]).groups()
    parts = {name: number(rows[name][0]) for name in ("decoder", "embeddings", "chunked cross-attention", "total")}
    assert parts["total"] - parameters == pytest.approx(1e6 * float(new), rel=0.005)
    assert float(base) == pytest.approx(parameters / 1e9, rel=0.005)
    assert float(share) == pytest.approx(100 * (parts["total"] - parameters) / parameters, abs=0.05)
    assert float(share) < 10
    # Nine layers of q, k, v, output and positions, as in every RETRO of this width; 6, 9, ..., 30 are the layers.
    assert parts["chunked cross-attention"] == pytest.approx(9 * (3 * 4096**2 + 2 * 896 * 4096), rel=0.001)
    # A token is multiplied with every matrix once; of the attention's logits, it sees half the sequence.
    per_layer = {"llama": (4 * 4096**2, 3 * 4096 * 11_008), "mistral": (2.5 * 4096**2, 3 * 4096 * 14_336)}[family]
    flops = sections["FLOPs"]
    logits = 32 * 4 * 4096 * 2049 / 2
    assert number(flops["self-attention"][2]) == pytest.approx(32 * 2 * per_layer[0] + logits, rel=0.01)
    assert number(flops["feed-forward"][2]) == pytest.approx(32 * 2 * per_layer[1], rel=0.01)


def test_retrofit_of_the_papers_largest_model_adds_less_than_a_tenth(planned) -> None:
    rows = planned("size=7_5b", *PAPER, "init=retrofit")["Parameters"]
    assert float(re.search(r"new parameters: .* ([0-9.]+)% of 7\.", rows[""][0]).group(1)) < 10
    assert "new parameters" not in planned("size=7_5b", *PAPER)["Parameters"][""][0]
