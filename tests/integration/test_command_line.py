"""The real command line on a corpus of the user's own, from text to the table."""

import csv
import html
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from retro_lab import open_run
from retro_lab.runs.chunk_scores import load_chunk_scores
from retro_lab.runs.examples import load_examples

REPOSITORY = Path(__file__).parents[2]
SMALL = [
    "+experiment=quickstart",
    "corpus=local",
    "corpus.path=corpus.jsonl",
    "corpus.validation_fraction=0.1",
    "corpus.test_fraction=0.1",
    "tokenizer.vocabulary_size=300",
    "model.chunk_length=8",
    "data.sequence_length=32",
    "evaluation.stride=16",
    "evaluation.curve_points=2",
    "embedder.shard_size=64",
    "retrieval.k=2",
    "data.batch_size=4",
    "size.width=16",
    "size.encoder_width=16",
    "size.layers=2",
    "size.cca_layers=[2]",
    "size.ffw_width=32",
    "size.encoder_ffw_width=32",
    "schedule.warmup_steps=2",
    "callbacks.checkpoint.every_n_train_steps=2",
    "trainer.log_every_n_steps=2",
]


def run(folder, *arguments, tokens=1024, check=0, **environment):
    command = [sys.executable, "-m", "retro_lab", *SMALL, f"schedule.tokens={tokens}", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == check, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_bert):
    """A folder with a corpus in it, and the small encoder as the embedder."""
    folder = tmp_path_factory.mktemp("workplace")
    sources = [path for path in sorted((REPOSITORY / "retro_lab").rglob("*.py")) if path.stat().st_size > 500][:40]
    rows = [{"text": path.read_text(encoding="utf-8")[:1500]} for path in sources]
    rows += [{"text": ""}, {"text": "a\0b"}]
    (folder / "corpus.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    (folder / "embedder.txt").write_text(f"embedder.model={tiny_bert}")
    return folder


@pytest.fixture(scope="module")
def embedder(workplace):
    return (workplace / "embedder.txt").read_text()


@pytest.fixture(scope="module")
def compared(workplace, embedder):
    """The whole experiment once, shared by the tests that look at what it left."""
    return run(workplace, embedder, "name=whole")


def records(folder, name):
    return {
        model: json.loads((folder / "outputs" / name / model / "result.json").read_text())
        for model in ("baseline", "retro")
    }


def test_one_command_from_text_to_the_table(workplace, compared):
    assert "RETRO[On]" in compared.stdout
    assert "RETRO[Off]" in compared.stdout
    assert "skipped 1" in compared.stderr
    assert "1 empty" in compared.stderr
    assert "1 NUL character" in compared.stderr
    found = records(workplace, "whole")
    assert [entry["k"] for entry in found["retro"]["evaluations"]] == [0, 2]
    assert [entry["k"] for entry in found["baseline"]["evaluations"]] == [0]
    assert found["baseline"]["tokens"] == found["retro"]["tokens"] == 1024
    assert all(0 < entry["bits_per_byte"] < 20 for record in found.values() for entry in record["evaluations"])
    off, on, alone = (*found["retro"]["evaluations"], *found["baseline"]["evaluations"])
    assert alone["flops_per_byte"] == off["flops_per_byte"] < on["flops_per_byte"]
    for record, entry in ((found["retro"], on), (found["baseline"], alone)):  # windows are as long as in training
        for_a_token = entry["flops_per_byte"] * entry["bytes"] / entry["tokens"]
        assert record["flops"] == pytest.approx(3 * for_a_token * record["tokens"])
    report = workplace / "outputs" / "whole" / "report"
    assert (report / "index.html").is_file()
    # The gain by overlap, whose last row has every chunk: the same numbers as in the comparison, to the last bit.
    assert "r(C): the longest piece of a chunk's text" in " ".join(compared.stdout.split())
    *_, whole = csv.DictReader((report / "tables" / "leakage.csv").read_text().splitlines())
    rows = csv.DictReader((report / "tables" / "comparison.csv").read_text().splitlines())
    level = {row["model"]: row for row in rows}
    for column, model in (("baseline", "Baseline"), ("off", "RETRO[Off]"), ("on", "RETRO[On]")):
        assert whole[f"{column}_bits_per_byte"] == level[model]["bits_per_byte"]
    gains = ("gain_bits_per_byte", "gain_low", "gain_high", "gain_percent")
    assert {key: whole[key] for key in gains} == {key: level["RETRO[On]"][key] for key in gains}


def test_a_trained_run_is_served(workplace, compared, embedder):
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    arguments = [*SMALL, "schedule.tokens=1024", embedder, "name=whole", "task=serve", "task.port=0"]
    command = [sys.executable, "-m", "retro_lab", *arguments]
    with (workplace / "serve.txt").open("w") as log:
        server = subprocess.Popen(command, cwd=workplace, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        url = server.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), (workplace / "serve.txt").read_text()

        def ask(address, body):
            request = urllib.request.Request(
                f"{url}/{address}", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)

        with urllib.request.urlopen(f"{url}/health", timeout=60) as answer:
            health = json.load(answer)
        assert (health["run"], health["model"], health["k"], health["chunk_length"]) == ("whole", "retro", 2, 8)
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert "<title>whole</title>" in answer.read().decode()

        # A chunk that fits into one again finds what was found and stored for it.
        compared_chunks = 0
        for example in load_examples(workplace / "outputs" / "whole" / "retro").examples:
            found = ask("search", {"query": example.passage.text, "n_docs": 2})
            if len(found["chunks"][0]) == 1:
                compared_chunks += 1
                distances = [neighbor["distance"] for neighbor in found["neighbors"][0]]
                assert distances == pytest.approx([near.distance for near in example.neighbors], rel=1e-3, abs=1e-3)
        assert compared_chunks

        # Without retrieval, each token is the likeliest of a forward pass; with it, whole chunks have neighbors.
        trained = open_run(workplace / "outputs" / "whole", "retro")
        ids = trained.tokenizer.encode(["import numpy"])[0].tolist()
        begun = len(ids)
        for _ in range(12):
            with torch.no_grad():
                ids.append(int(trained.model.logits(trained.model(torch.tensor([ids])))[0, -1].argmax()))
        [expected] = trained.tokenizer.decode([np.array(ids[begun:])])
        body = {"prompt": "import numpy", "max_tokens": 12}
        off, on = ask("generate", body | {"k": 0})["texts"][0], ask("generate", body)["texts"][0]
        assert (off["text"], off["tokens"], off["finish_reason"]) == (expected, 12, "length")
        assert [off["text"]] == [part["text"] for part in off["stretches"]]
        assert "".join(part["prompt"] for part in on["stretches"]) == "import numpy"
        assert "".join(part["text"] for part in on["stretches"]) == on["text"]
        counts = [len(part["neighbors"]) for part in on["stretches"]]
        assert counts == [2] * ((begun + on["tokens"] - 1) // 8) + [0]  # the last token was not read
        assert ask("generate", body | {"retrieve_every": 8})["texts"][0] == on  # the tokens of a chunk
        finish = ask("generate", body | {"k": 0, "stop": expected[3:5]})["texts"][0]
        assert (finish["text"], finish["finish_reason"]) == (expected[: expected.find(expected[3:5])], "stop")
        sampled = body | {"temperature": 1.0, "seed": 3, "top_k": 40, "top_p": 0.9}
        assert ask("generate", sampled) == ask("generate", sampled)

        with ThreadPoolExecutor(8) as clients:
            texts = list(clients.map(lambda number: ask("search", {"query": f"text {number}"})["query"], range(64)))
        assert texts == [f"text {number}" for number in range(64)]

        commands = re.findall(r"^curl .*$", (REPOSITORY / "docs" / "serve.md").read_text(), re.MULTILINE)
        assert len(commands) == 2
        for documented in commands if shutil.which("curl") else ():
            here = shlex.split(documented.replace("http://127.0.0.1:8000", url))
            answered = json.loads(subprocess.run(here, capture_output=True, check=True).stdout)
            assert {"results", "texts"} & answered.keys(), answered

        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.stdout.close()
    log = (workplace / "serve.txt").read_text()
    assert "Traceback" not in log
    assert log.rstrip().endswith("stopped")


def test_no_library_chatter(compared):
    for chatter in ("Tip", "GPU available", "Warning", "WARNING", "litlogger"):
        assert chatter not in compared.stderr + compared.stdout


def tracked(folder, name, model):
    """What W&B's own reader finds in the offline runs of a model: the state of each, and its records."""
    files = sorted((folder / "outputs" / name / model).glob("wandb/offline-run-*/*.wandb"))
    reader = Path(sys.executable).with_name("wandb")
    found = []
    for file in files:
        read = [
            subprocess.run(
                [reader, "leet", "inspect", *flags, "--json", file], capture_output=True, text=True, check=True
            )
            for flags in (["--summary"], [])
        ]
        found.append((json.loads(read[0].stdout), [json.loads(line) for line in read[1].stdout.splitlines()]))
    return found


def test_wandb_holds_the_configuration_and_the_scores(workplace, compared, embedder):
    [(state, log)] = tracked(workplace, "whole", "retro")
    record = records(workplace, "whole")["retro"]
    run_of = next(entry["run"] for entry in log if entry["type"] == "run")
    assert state["state"] == "finished"
    assert (run_of["display_name"], run_of["run_group"], run_of["job_type"]) == ("whole/retro", "whole", "compare")
    assert set(run_of["tags"]) == {"local", "tiny", "k=2", "scratch"}
    config = state["config"]
    assert config["optimizer"]["lr"] == 6e-3
    assert config["retrieval"]["k"] == 2
    assert config["run"]["parameters"] == record["parameters"]
    assert config["run"]["database_fingerprint"] != config["run"]["corpus_fingerprint"]
    assert config["run"]["provenance"]["commit"] == record["provenance"]["commit"]
    assert not {"logger", "callbacks", "paths"} & config.keys()
    summary = state["summary"]
    for entry in record["evaluations"]:
        assert summary[f"test/bits_per_byte/k={entry['k']}"] == pytest.approx(entry["bits_per_byte"])
    assert {"validation/bits_per_byte/k=0", "validation/bits_per_byte/k=2", "train/loss"} <= summary.keys()
    assert summary["train/tokens_per_second"] > 0
    assert 0 < summary["train/mfu"] < 1
    assert summary["train/gradient_norm"] > 0
    assert summary["tokens"] == record["tokens"]
    axes = {entry["metric"].get("step_metric") for entry in log if entry["type"] == "metric"}
    assert "tokens" in axes
    [(baseline, _)] = tracked(workplace, "whole", "baseline")
    assert baseline["config"]["retrieval"]["k"] == 0
    assert baseline["run_id"] != state["run_id"]


def test_the_second_run_reuses_everything_and_says_so(workplace, compared, embedder):
    before = records(workplace, "whole")
    again = run(workplace, embedder, "name=whole")
    assert "building" not in again.stderr
    assert again.stderr.count("reusing") >= 8
    assert records(workplace, "whole") == before


def test_another_seed_of_the_models_builds_nothing(workplace, compared, embedder):
    built = run(workplace, embedder, "task=build", "seed=1").stderr
    assert "building" not in built
    assert built.count("reusing") >= 8


def test_other_settings_under_the_same_name_are_refused(workplace, compared, embedder):
    note = workplace / "outputs" / "whole" / "config.yaml"
    noted = note.read_bytes()
    refused = run(workplace, embedder, "name=whole", "optimizer.lr=0.5", check=2)
    assert note.read_bytes() == noted
    assert "optimizer.lr" in refused.stderr
    assert "name=" in refused.stderr


def test_evaluate_with_more_neighbors_adds_them_to_the_result(workplace, compared, embedder):
    run(workplace, embedder, "name=whole", "task=evaluate", "evaluation.k=[0,1,4]")
    entries = records(workplace, "whole")["retro"]["evaluations"]
    assert [entry["k"] for entry in entries] == [0, 1, 2, 4]
    *_, (state, _) = tracked(workplace, "whole", "retro")  # the scores go into the same W&B run
    assert state["summary"]["test/bits_per_byte/k=4"] == pytest.approx(entries[-1]["bits_per_byte"])
    assert len({state["run_id"] for state, _ in tracked(workplace, "whole", "retro")}) == 1


def test_inspect_shows_chunks_and_writes_the_losses_of_their_documents_tokens(workplace, compared, embedder):
    done = run(workplace, embedder, "name=whole", "task=inspect", "task.split=test", "task.chunk=1")
    assert "test chunk 1" in done.stdout
    assert "neighbor 2" in done.stdout
    report = workplace / "outputs" / "whole" / "report"
    [page] = (report / "inspect").glob("*.html")
    assert str(page.relative_to(workplace)) in done.stderr
    assert f"inspect/{page.name}" in (report / "index.html").read_text()
    document = int(page.stem.removeprefix("test_"))
    numbers = re.findall(r'data-n="(\S+) (\S+) \d+"', page.read_text())
    for entry in records(workplace, "whole")["retro"]["evaluations"]:
        if entry["k"] not in (0, 2):
            continue
        scores = load_chunk_scores(workplace / "outputs" / "whole" / "retro" / entry["scores"]).by_document()
        assert len(numbers) == scores.tokens[document]
        found = sum(float(pair[entry["k"] > 0]) for pair in numbers)
        assert found == pytest.approx(scores.nats[document], abs=0.0005 * len(numbers))  # the page rounds


def test_the_runs_page_shows_what_chunks_retrieved(workplace, compared):
    page = (workplace / "outputs" / "whole" / "report" / "index.html").read_text()
    kept = load_examples(workplace / "outputs" / "whole" / "retro")
    assert [len(example.neighbors) for example in kept.examples] == [2, 2, 2]
    for example in kept.examples:
        for passage in (example.passage, *example.neighbors):
            assert html.escape(passage.text).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page


def test_retrofit_keeps_the_frozen_baseline_exactly(workplace, compared, embedder):
    """With neighbors off, a RETROfitted model scores what its baseline scored (Borgeaud et al. 2022, Sec. 4.2)."""
    run(workplace, embedder, "init=retrofit", "name=fitted")
    found = records(workplace, "fitted")
    off = next(entry for entry in found["retro"]["evaluations"] if entry["k"] == 0)
    assert off == found["baseline"]["evaluations"][0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["trainer=gpu", "trainer.accelerator=cpu", "schedule.warmup_steps=40"],
        ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.micro_batch_size=1"],
    ],
)
def test_the_shipped_trainers_train_in_bfloat16(workplace, compared, embedder, arguments):
    """They bring autocast, clipping and a fused optimizer together."""
    done = run(workplace, embedder, "task=train", f"name={arguments[0].partition('=')[2]}", *arguments)
    assert "precision bf16-mixed" in done.stderr
    assert "RETRO[On]" in done.stdout
    cut = "warm-up shortened to 0 steps, a tenth of the training, from schedule.warmup_steps=40" in " ".join(
        done.stderr.split()
    )
    assert cut == ("schedule.warmup_steps=40" in arguments)


def test_fsdp_trains_what_ddp_trains_and_one_process_goes_on_with_its_run(workplace, compared, embedder):
    """Two ranks of Lightning's own launcher; the trainer of many machines is tried on one."""
    ranks = ["task=train", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
    sharded = run(workplace, embedder, "name=sharded", "trainer=fsdp", *ranks)
    assert "2 x cpu, precision 32-true" in sharded.stderr
    assert "RETRO[On]" in sharded.stdout
    run(workplace, embedder, "name=copied", "trainer=multi_node", "trainer.num_nodes=1", *ranks)
    folders = [workplace / "outputs" / name / "retro" for name in ("sharded", "copied")]
    found, expected = (load_file(folder / "model.safetensors") for folder in folders)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-4)
    scores, others = map(bits_per_byte, folders)
    assert scores == pytest.approx(others, abs=1e-4)
    again = run(workplace, embedder, "name=sharded", "task=evaluate", "evaluation.k=[0,1,2]").stderr
    assert "building" not in again
    assert again.count("evaluating") == 1
    more = bits_per_byte(folders[0])
    assert more.keys() == {0, 1, 2}
    assert {k: more[k] for k in scores} == scores, "scored by two ranks, and kept"


def bits_per_byte(folder):
    """Return a model's scores by k."""
    record = json.loads((folder / "result.json").read_text())
    return {entry["k"]: entry["bits_per_byte"] for entry in record["evaluations"]}


def checksums(root):
    """Checksum of every file of every artifact; a manifest also holds measured times."""
    return {
        f"{path.parent.relative_to(root)}/{name}": record["sha256"]
        for path in root.glob("*/*/manifest.json")
        for name, record in json.loads(path.read_text())["files"].items()
    }


def test_ranks_of_torchrun_share_a_build_and_one_of_them_speaks(workplace, compared, embedder):
    arguments = [*SMALL, embedder, "task=build", "paths.artifacts=by_torchrun"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "retro_lab"]
    done = subprocess.run([*launcher, *arguments], cwd=workplace, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert checksums(workplace / "by_torchrun") == checksums(workplace / "artifacts")
    splits = ["train", "validation", "test"]
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [*splits, "test", "validation", "index"]
    assert done.stdout.splitlines()[-1].endswith("recall@10 1.0")
    begun = [line.split()[0] for line in done.stderr.splitlines() if "building" in line or "reusing" in line]
    assert len(begun) == len(list(workplace.glob("artifacts/*/*/manifest.json")))


def test_four_ranks_of_slurm_of_which_one_is_killed_and_comes_back(workplace, compared, embedder, tmp_path):
    script = Path(__file__).with_name("ranks_of_slurm.py")
    arguments = [tmp_path, "by_slurm/embeddings/*/00000", *SMALL, embedder, "task=build", "paths.artifacts=by_slurm"]
    quiet = os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # as the command line has it before it imports anything
    done = subprocess.run(
        [sys.executable, script, *arguments], cwd=workplace, capture_output=True, text=True, env=quiet
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["killed"] == -signal.SIGKILL, "killed too late to test anything"
    assert outcome["statuses"] == [0] * 4, outcome["outputs"]
    assert checksums(workplace / "by_slurm") == checksums(workplace / "artifacts")
    assert "train:" in outcome["outputs"][0][0]
    assert outcome["outputs"][1:] == [["", ""]] * 3


def test_verify_finds_a_changed_byte(workplace, compared, embedder):
    assert "are whole" in run(workplace, embedder, "task=verify").stdout
    path = next((workplace / "artifacts" / "embeddings").rglob("embeddings.npy"))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        assert str(path.relative_to(workplace)) in run(workplace, embedder, "task=verify", check=2).stderr
    finally:
        path.write_bytes(content)


def test_sweep_runs_its_cells_and_a_restart_skips_them(workplace, compared, embedder):
    arguments = [argument for argument in SMALL if not argument.startswith("+experiment")]
    command = [sys.executable, "-m", "retro_lab", "+sweep=neighbors", *arguments, "schedule.tokens=256", embedder]
    first = subprocess.run([*command, "retrieval.k=0,1"], cwd=workplace, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "retrieval.k" in first.stdout
    again = subprocess.run([*command, "retrieval.k=0,1"], cwd=workplace, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "trained on 256 tokens" in again.stderr
    assert "steps of" not in again.stderr


def test_cells_with_several_ranks_each_run_once_in_their_own_folder(workplace, compared, embedder):
    """Lightning starts a rank by running the command again: here it would be the whole sweep."""
    own = [argument for argument in SMALL if not argument.startswith(("data.batch_size", "retrieval.k"))]
    two_ranks = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
    command = [sys.executable, "-m", "retro_lab", "-m", *own, *two_ranks, embedder, "name=ranks", "task=train"]
    settings = ["retrieval.k=0", "schedule.tokens=256", "data.batch_size=3,4,8"]
    swept = subprocess.run([*command, *settings], cwd=workplace, capture_output=True, text=True)
    assert swept.returncode == 1, swept.stderr
    folder = workplace / "outputs" / "sweeps" / "ranks"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        "report", *(f"data.batch_size={size}" for size in (3, 4, 8))
    }  # fmt: skip
    assert "cannot be divided over 2 devices" in (folder / "data.batch_size=3" / "failed.json").read_text()
    for size in (4, 8):
        assert json.loads((folder / f"data.batch_size={size}/baseline/result.json").read_text())["tokens"] == 256
        trained = [line for line in swept.stderr.splitlines() if line.startswith("folder")]
        assert sum(f"data.batch_size={size}/baseline" in line for line in trained) == 1
    assert swept.stderr.count("2 x cpu") == 2
    assert not list(workplace.glob("outputs/*/data.batch_size*"))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("corpus.path=nowhere.jsonl", "nowhere.jsonl"),
        ("corpus.text_field=body", "body"),
        ("retrieval.k=100000", "retrieval.k=100000"),
        ("data.sequence_length=33", "data.sequence_length=33"),
        ("index.factory=IVF4096,Flatt", "index.factory=IVF4096,Flatt"),
        ("retrieval.method=bm24", "retrieval.method=bm24"),
        ("data.batch_size=10000000", "data.batch_size=10000000 makes 10,000,000 sequences"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_two(workplace, embedder, override, sentence):
    refused = run(workplace, embedder, "name=bad", override, check=2)
    assert "Traceback" not in refused.stderr
    assert sentence in refused.stderr.splitlines()[-1]
    assert not (workplace / "outputs" / "bad").exists()


def test_an_empty_corpus_is_refused(workplace, embedder):
    (workplace / "empty.jsonl").write_text("")
    assert "empty.jsonl" in run(workplace, embedder, "corpus.path=empty.jsonl", "name=bad", check=2).stderr


def test_documents_shorter_than_a_chunk_are_built_and_less_than_a_sequence_is_refused(workplace, embedder):
    rows = [json.dumps({"text": f"a {number}"}) for number in range(30)]
    (workplace / "short.jsonl").write_text("\n".join(rows))
    settings = [embedder, "corpus.path=short.jsonl", "decontamination=none", "retrieval.method=bm25"]
    built = run(workplace, *settings, "task=build").stdout.splitlines()
    assert built[0].startswith("train: 2")
    assert built[1].startswith("validation: ")
    refused = run(workplace, *settings, "data.sequence_length=512", "name=bad", check=2)
    assert "less than one sequence of data.sequence_length=512" in refused.stderr.splitlines()[-1]


def test_what_is_too_long_or_too_like_a_held_out_document_is_not_trained_on(tmp_path, workplace, embedder):
    texts = [json.loads(line)["text"] for line in (workplace / "corpus.jsonl").read_text().splitlines()][:20]
    held, train = texts[:4], [*texts[4:], texts[1] + "  # a copy", "long " * 1000, texts[9] + "  # a copy"]
    for name, rows in (("held", held), ("train", train)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in rows))
    paths = ["corpus.path=train.jsonl", "corpus.test_path=held.jsonl", "corpus.max_document_bytes=2000"]
    done = run(tmp_path, embedder, *paths, "task=build")
    said = " ".join(done.stderr.split())
    assert "skipped 1 longer than corpus.max_document_bytes, such as train.jsonl:18: longer" in said
    assert "dropped 1 training documents that nearly duplicate held-out ones, such as train.jsonl:17:" in said
    assert "dropped 1 training documents that nearly duplicate others, such as train.jsonl:19:" in said
    assert "train: 16 documents" in done.stdout
    assert "test: nearest training document: median similarity" in done.stdout
    run(tmp_path, *paths, embedder, "corpus.max_document_bytes=0", "task=build", check=2)
    off = run(tmp_path, embedder, *paths, "task=build", "decontamination=none", "deduplication=none")
    assert "nearest training document" not in off.stdout
    assert "train: 18 documents" in off.stdout
    facts = [
        json.loads(path.read_text())["facts"] for path in tmp_path.glob("artifacts/decontamination/*/manifest.json")
    ]
    assert [found["decontamination"]["dropped"]["documents"] for found in facts] == [1]


@pytest.mark.parametrize("override", ["corpus.validation_fraction=0.6", "corpus.path=other.jsonl"])
def test_a_model_is_not_scored_on_other_data_than_it_was_trained_beside(workplace, compared, embedder, override):
    (workplace / "other.jsonl").write_text((workplace / "corpus.jsonl").read_text().replace("def ", "define "))
    before = records(workplace, "whole")
    refused = run(workplace, embedder, "name=whole", "task=evaluate", override, check=2)
    assert "other settings (corpus: " in refused.stderr.splitlines()[-1]
    assert records(workplace, "whole") == before


def test_other_windows_databases_and_texts_add_scores_and_take_no_others_place(workplace, compared, embedder):
    """One model, scored in several ways: every score says how, and those that are there stay as they are."""
    (workplace / "mine.jsonl").write_text((workplace / "corpus.jsonl").read_text().replace("self", "itself"))
    before = records(workplace, "whole")
    mine = ["+corpus@corpora.mine=local", "corpora.mine.path=mine.jsonl"]
    for overrides in (
        ["evaluation.stride=8"],
        ["database.fraction=0.5"],
        [*mine, "database.corpus=mine"],
        [*mine, "evaluation.datasets=[test,mine,validation]"],
    ):
        run(workplace, embedder, "name=whole", "task=evaluate", *overrides)
    after = records(workplace, "whole")
    for model, record in after.items():
        assert all(entry in record["evaluations"] for entry in before[model]["evaluations"])
        texts = {(entry["text"]["name"], entry["text"]["stride"]) for entry in record["evaluations"]}
        assert texts == {("test", 16), ("test", 8), ("mine", 16), ("validation", 16)}
        closer = {entry["k"]: entry for entry in record["evaluations"] if entry["text"]["stride"] == 8}
        for old in (entry for entry in before[model]["evaluations"] if entry["k"] in closer):
            assert closer[old["k"]]["bits_per_byte"] != old["bits_per_byte"]  # more text before each token
            assert closer[old["k"]]["tokens"] == old["tokens"]
    for model, record in after.items():  # each score with the shares of its chunks, which add up to it
        assert len({entry["scores"] for entry in record["evaluations"]}) == len(record["evaluations"])
        for entry in record["evaluations"]:
            shares = pq.read_table(workplace / "outputs" / "whole" / model / entry["scores"])
            nats, tokens, size = (math.fsum(shares[name].to_pylist()) for name in ("nats", "tokens", "bytes"))
            documents = len(set(shares["document"].to_pylist()))
            assert (documents, tokens, size) == (entry["documents"], entry["tokens"], entry["bytes"])
            assert nats / math.log(2) / size == entry["bits_per_byte"]
            assert min(shares["nats"].to_pylist()) > 0
            overlaps = shares["overlap"].to_pylist()
            if entry["k"]:
                assert 0 <= min(overlaps) <= max(overlaps) <= 1
            else:
                assert set(overlaps) == {None}
    databases = {
        entry["retrieved"]["neighbors"]
        for entry in after["retro"]["evaluations"]
        if entry["k"] == 2 and entry["text"]["name"] == "test"
    }
    assert len(databases) == 3
    table = run(workplace, embedder, "name=whole", "task=report").stdout
    for explained in ("mine: test split of mine (mine.jsonl)", "test (2): test split", "windows of 32 tokens every 8"):
        assert explained in " ".join(table.split())
    # What is gone is measured again, and so is what an earlier release measured, by document.
    lost, old = (workplace / "outputs" / "whole" / name / after[name]["evaluations"][0]["scores"] for name in after)
    whole = [pq.read_table(path) for path in (lost, old)]
    lost.unlink()
    pq.write_table(whole[1].drop_columns("overlap"), old)
    refused = run(workplace, embedder, "name=whole", "task=report", check=2)
    assert "does not hold the chunks' scores" in refused.stderr.splitlines()[-1]
    again = run(workplace, embedder, "name=whole", "task=evaluate")
    assert again.stderr.count("evaluating") == 2
    assert records(workplace, "whole") == after
    assert [pq.read_table(path) for path in (lost, old)] == whole
