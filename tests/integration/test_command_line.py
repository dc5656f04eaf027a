"""The real command line on a corpus of the user's own, from text to the table."""

import csv
import html
import json
import math
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
from in_process import REPOSITORY
from local_experiment import command, furnish, run, run_apart

from retro_lab import open_run
from retro_lab.config.compose import compose
from retro_lab.generation.sampling import Sampling
from retro_lab.runs.chunk_scores import load_chunk_scores
from retro_lab.runs.examples import load_examples
from retro_lab.tasks.build import Inputs
from retro_lab.tasks.opened import open_with_inputs


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_bert):
    """A folder with a corpus in it, and the small encoder as the embedder."""
    return furnish(tmp_path_factory.mktemp("workplace"), tiny_bert)


@pytest.fixture(scope="module")
def compared(workplace):
    """The whole experiment once, shared by the tests that look at what it left."""
    return run_apart(workplace, "name=whole")


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


def test_a_trained_run_is_served(workplace, compared):
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    arguments = command("name=whole", "task=serve", "task.port=0")
    with (workplace / "serve.txt").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "retro_lab", *arguments],
            cwd=workplace,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
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
        assert ask("generate", body | {"drafts": True})["texts"][0] == on  # the same text, but faster
        often = ask("generate", body | {"retrieve_every": 4})["texts"][0]
        counts = [len(part["neighbors"]) for part in often["stretches"]]
        windows = [
            end for end in range(8, begun + often["tokens"]) if end % 4 == 0 and (end % 8 == 0 or end > begun - 4)
        ]
        assert counts == [2] * len(windows) + [0]
        assert "".join(part["text"] for part in often["stretches"]) == often["text"]
        finish = ask("generate", body | {"k": 0, "stop": expected[3:5]})["texts"][0]
        assert (finish["text"], finish["finish_reason"]) == (expected[: expected.find(expected[3:5])], "stop")
        assert "".join(part["text"] for part in finish["stretches"]) == finish["text"]
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


PROMPT = " import numpy, ${x} \\\\${y} 'a' \"b\" {c: [d]}=?\n  def forward(self, été): "
"""A text that a shell hands over as it is, and that Hydra would take apart."""


def generate(workplace, *arguments, check=0):
    """Continue texts with the trained run; standard output has nothing but texts."""
    return run(workplace, "name=whole", "task=generate", "task.max_tokens=20", *arguments, check=check)


def test_a_text_is_continued_and_shown_beside_its_neighbors(workplace, compared):
    printed = generate(workplace, f"prompt={PROMPT}", "task.drafts=true", "task.show_neighbors=true")
    assert printed.stdout.startswith(PROMPT)
    assert printed.stdout.endswith("\n")
    (workplace / "prompts.jsonl").write_text(json.dumps({"prompt": PROMPT}) + '\n{"prompt": "import"}\n')
    quiet = generate(workplace, "task.prompts=prompts.jsonl", "task.output=texts.jsonl")
    assert quiet.stdout == ""
    first, second = map(json.loads, (workplace / "texts.jsonl").read_text(encoding="utf-8").splitlines())
    assert PROMPT + first["text"] + "\n" == printed.stdout  # with drafts or without, alone or beside another
    assert (second["prompt"], second["tokens"], second["finish_reason"]) == ("import", 20, "length")
    assert (first["draft_tokens"], first["accepted_draft_tokens"]) == (0, 0)
    assert re.search(r"20 tokens in [\d.]+ s: .*; \d+ of \d+ draft tokens accepted", printed.stderr)
    found = [stretch["neighbors"] for stretch in first["stretches"]]
    assert [len(neighbors) for neighbors in found] == [2] * (len(found) - 1) + [0]
    shown = " ".join(row.split("│")[2].strip() for row in printed.stderr.splitlines() if row.count("│") == 3)
    for neighbor in (neighbor for neighbors in found for neighbor in neighbors):
        assert f"{neighbor['document']}, chunk {neighbor['chunk']}, distance {neighbor['distance']:.3f}:" in shown
    assert max(map(len, printed.stderr.partition("┏")[2].partition("┘")[0].splitlines())) <= 80


def test_what_is_generated_is_what_the_generator_writes_as_far_as_it_gets(workplace, compared, monkeypatch):
    settings = ["temperature=1.0", "top_k=50", "top_p=0.9", "seed=3", "retrieve_every=4", "k=1", "stop=[qz]"]
    whole = generate(workplace, "prompt=def ", *(f"task.{setting}" for setting in settings))
    copied = "x = 1  # import numpy as np"
    by_hand = generate(
        workplace, f"prompt={copied}", "task.neighbors=['a, b','import numpy']", "task.show_neighbors=true"
    )
    choose, calls = Sampling.choose, iter(range(100))

    def interrupted(*arguments):
        if next(calls) == 12:
            raise KeyboardInterrupt
        return choose(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Sampling, "choose", interrupted)
        part = generate(workplace, "prompt=def ", "task.k=0", check=130)
    monkeypatch.chdir(workplace)
    config = compose([*command("name=whole"), "task=serve"])
    with Inputs(config) as inputs:
        opened = open_with_inputs(config, workplace / "outputs" / "whole" / "retro", inputs)
        prompts = opened.trained.tokenizer.encode(["def "])
        sampling = Sampling(1.0, 50, 0.9, 3)
        [sampled] = opened.generator(1).generate(
            prompts, max_tokens=20, sampling=sampling, stop=["qz"], retrieve_every=4
        )
        [greedy] = opened.generator(0).generate(prompts, max_tokens=20)
        [given] = opened.generator(0).generate(
            opened.trained.tokenizer.encode([copied]), max_tokens=20, neighbors=["a, b", "import numpy"]
        )
    assert whole.stdout == f"def {sampled.text}\n"
    assert by_hand.stdout == f"{copied}{given.text}\n"
    columns = zip(*(row.split("│")[1:3] for row in by_hand.stderr.splitlines() if row.count("│") == 3), strict=True)
    text, neighbors = (re.sub(r"\s{2,}", " ", "".join(column)) for column in columns)
    assert part.stdout.startswith("def ")
    assert f"def {greedy.text}".startswith(part.stdout.removesuffix("\n"))
    assert "12 tokens in " in part.stderr
    assert part.stderr.endswith("Interrupted; this is what was written until then.\n")
    assert "1. given by hand: a, b 2. given by hand: " in neighbors
    for column, whole in ((text, copied), (neighbors, "import numpy")):  # what they have in common is marked
        common = re.findall("«(.*?)»", column)
        assert common
        assert all(part in whole for part in common)
    assert "neighbors given by hand" in by_hand.stderr


def test_what_cannot_be_generated_is_said_in_one_sentence(workplace, compared):
    missing = generate(workplace, "name=nothing", "prompt=a", check=2)
    sentence = missing.stderr.splitlines()[-1]
    assert "/outputs/nothing holds no trained model; train one with: python -m retro_lab +experiment=" in sentence
    assert "task" not in sentence  # whose settings the experiment's own task does not have
    assert not (workplace / "outputs" / "nothing").exists()
    every = generate(workplace, "prompt=a", "task.retrieve_every=9", check=2)
    assert every.stderr.splitlines()[-1] == "error: retrieve_every must be from 1 to 8, the tokens of a chunk, not 9."
    baseline = generate(workplace, "prompt=a", "task.model=baseline", "task.k=1", check=2)
    assert re.fullmatch(r"error: A baseline .*k=1 or take a RETRO\.", baseline.stderr.splitlines()[-1])
    for refused in (missing, every, baseline):
        assert refused.stdout == ""


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


def test_wandb_holds_the_configuration_and_the_scores(workplace, compared):
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


def test_the_second_run_reuses_everything_and_says_so(workplace, compared):
    before = records(workplace, "whole")
    again = run(workplace, "name=whole")
    assert "building" not in again.stderr
    assert again.stderr.count("reusing") >= 8
    assert records(workplace, "whole") == before


def test_another_seed_of_the_models_builds_nothing(workplace, compared):
    built = run(workplace, "task=build", "seed=1").stderr
    assert "building" not in built
    assert built.count("reusing") >= 8


def test_other_settings_under_the_same_name_are_refused(workplace, compared):
    note = workplace / "outputs" / "whole" / "config.yaml"
    noted = note.read_bytes()
    refused = run(workplace, "name=whole", "optimizer.lr=0.5", check=2)
    assert note.read_bytes() == noted
    assert "optimizer.lr" in refused.stderr
    assert "name=" in refused.stderr


def test_evaluate_with_more_neighbors_adds_them_to_the_result(workplace, compared):
    run(workplace, "name=whole", "task=evaluate", "evaluation.k=[0,1,4]")
    entries = records(workplace, "whole")["retro"]["evaluations"]
    assert [entry["k"] for entry in entries] == [0, 1, 2, 4]
    *_, (state, _) = tracked(workplace, "whole", "retro")  # the scores go into the same W&B run
    assert state["summary"]["test/bits_per_byte/k=4"] == pytest.approx(entries[-1]["bits_per_byte"])
    assert len({state["run_id"] for state, _ in tracked(workplace, "whole", "retro")}) == 1


def test_inspect_shows_chunks_and_writes_the_losses_of_their_documents_tokens(workplace, compared):
    done = run(workplace, "name=whole", "task=inspect", "task.split=test", "task.chunk=1")
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


def test_retrofit_keeps_the_frozen_baseline_exactly(workplace, compared):
    """With neighbors off, a RETROfitted model scores what its baseline scored (Borgeaud et al. 2022, Sec. 4.2)."""
    run(workplace, "init=retrofit", "name=fitted", "task.longer_baseline=false", "logger=none")
    found = records(workplace, "fitted")
    off = next(entry for entry in found["retro"]["evaluations"] if entry["k"] == 0)
    assert off == found["baseline"]["evaluations"][0]


def test_verify_finds_a_changed_byte(workplace, compared):
    assert "are whole" in run(workplace, "task=verify").stdout
    path = next((workplace / "artifacts" / "embeddings").rglob("embeddings.npy"))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        assert str(path.relative_to(workplace)) in run(workplace, "task=verify", check=2).stderr
    finally:
        path.write_bytes(content)


def test_sweep_runs_its_cells_and_a_restart_skips_them(workplace, compared):
    sweep = ["+sweep=neighbors", "retrieval.k=0,1", "schedule.tokens=256", "logger=none"]
    assert "retrieval.k" in run(workplace, *sweep).stdout
    again = run(workplace, *sweep)
    assert "trained on 256 tokens" in again.stderr
    assert "steps of" not in again.stderr


@pytest.mark.parametrize("override", ["corpus.validation_fraction=0.6", "corpus.path=other.jsonl"])
def test_a_model_is_not_scored_on_other_data_than_it_was_trained_beside(workplace, compared, override):
    (workplace / "other.jsonl").write_text((workplace / "corpus.jsonl").read_text().replace("def ", "define "))
    before = records(workplace, "whole")
    refused = run(workplace, "name=whole", "task=evaluate", override, check=2)
    assert "other settings (corpus: " in refused.stderr.splitlines()[-1]
    assert records(workplace, "whole") == before


def test_other_windows_databases_and_texts_add_scores_and_take_no_others_place(workplace, compared):
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
        run(workplace, "name=whole", "task=evaluate", "logger=none", *overrides)
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
    table = run(workplace, "name=whole", "task=report").stdout
    for explained in ("mine: test split of mine (mine.jsonl)", "test (2): test split", "windows of 32 tokens every 8"):
        assert explained in " ".join(table.split())
    # What is gone is measured again, and so is what an earlier release measured, by document.
    lost, old = (workplace / "outputs" / "whole" / name / after[name]["evaluations"][0]["scores"] for name in after)
    whole = [pq.read_table(path) for path in (lost, old)]
    lost.unlink()
    pq.write_table(whole[1].drop_columns("overlap"), old)
    refused = run(workplace, "name=whole", "task=report", check=2)
    assert "does not hold the chunks' scores" in refused.stderr.splitlines()[-1]
    again = run(workplace, "name=whole", "task=evaluate", "logger=none")
    assert again.stderr.count("evaluating") == 2
    assert records(workplace, "whole") == after
    assert [pq.read_table(path) for path in (lost, old)] == whole
