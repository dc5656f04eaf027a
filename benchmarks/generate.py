"""How fast texts are written, what the length, retrieval and drafts do to that, and how it compares.

    python benchmarks/generate.py                    our own model on this machine's processor
    python benchmarks/generate.py --peer             beside retro-pytorch, in the environment of README.md
    python benchmarks/generate.py --run FOLDER       drafts too, with a trained run and its database

Contestants take turns in one process, on one thread; a ratio is of medians of seconds of that thread's work. The peer
takes minutes for one text and writes it once, between turns of ours. Neighbors are given by hand where retrieval is not
measured. A text is written to the end, whatever tokens come.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from contestants import CHUNK, Shape, peer_model
from python_stores import python_stores
from side_by_side import Clock, Row, markdown, origin
from torch import nn

from retro_lab import console
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.config.compose import compose
from retro_lab.generation.decoder import Decoder, Writing
from retro_lab.generation.drafts import Drafter
from retro_lab.generation.retrieved import Found, Retrieve, searched
from retro_lab.generation.sampling import Sampling
from retro_lab.model.config import ModelConfig
from retro_lab.model.language_model import LanguageModel
from retro_lab.model.retro import RetroModel
from retro_lab.retrieval.config import Value
from retro_lab.retrieval.database import Database
from retro_lab.runs.trained_model import open_model
from retro_lab.tasks.build import Inputs

PROMPT, LENGTH = 128, 512
PLACES = (128, 512, 1024, 1984)
"""Tokens before those whose cost is measured."""
MORE = CHUNK
"""Tokens written there, with one retrieval among them."""
DATABASE_BYTES = 1e6
PEER = "retro-pytorch"
GREEDY, LIVE, GIVEN = "greedy", "ours, live retrieval", "ours"
TEXTS = 6
"""Texts that drafts are measured on."""
CANDIDATES = 128
"""Held-out prompts that those with most and least overlap are chosen from."""


def main() -> None:
    """Measure, print the tables and, with `--out`, write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="store_true", help="beside retro-pytorch")
    parser.add_argument("--run", type=Path, help="folder of a trained run, for drafts")
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="folder with the run's database")
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512], help="of the models")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for generate.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console.quiet()
    clock = Clock(torch.device("cpu"))
    sections = [f"# Generation\n\n{origin(clock.device)}"]
    rows: list[Row] = []
    measures = [partial(speeds, peer=arguments.peer, width=width) for width in arguments.widths]
    measures.append(partial(lengths, width=max(arguments.widths)))
    if arguments.run:
        measures.append(partial(drafts, folder=arguments.run, artifacts=arguments.artifacts))
    for measure in measures:
        table, ratios = measure(clock, rounds=arguments.rounds)
        print(table, end="\n\n", flush=True)
        sections.append(table)
        rows += ratios
    sections.append("## Ratios\n\n" + markdown(rows))
    print(sections[-1])
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "generate.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


class Text(Writing):
    """A text that ends when it is long enough, and notes down when its tokens came."""

    most: int
    times: list[float]

    def ends(self) -> bool:
        """Return whether it is."""
        self.times.append(time.process_time())
        return len(self.tokens) >= self.most


def write(
    model: LanguageModel, retrieve: Retrieve | None, prompt: Sequence[int], stop: int, drafter: Drafter | None = None
) -> Text:
    """Write one text greedily, up to `stop` tokens."""
    text = Text(list(prompt), np.random.default_rng(0), drafter)
    text.most, text.times = stop, []
    Decoder(model, Sampling(), retrieve, length=max(stop, LENGTH)).write([text])
    return text


def speeds(clock: Clock, *, rounds: int, width: int, peer: bool) -> tuple[str, list[Row]]:
    """Measure a text from `PROMPT` to `LENGTH` tokens, and beside it the live search and retro-pytorch."""
    with tempfile.TemporaryDirectory() as folder:
        store, held_out = python_stores(Path(folder), CHUNK, DATABASE_BYTES)
        config = compose([f"model.chunk_length={CHUNK}", "retrieval.k=2"])
        parts = config.database, config.retrieval, config.index, config.embedder
        database = Database(ArtifactStore(Path(folder)), "torch", store, held_out, *parts, k=2)
        shape = Shape(width, LENGTH, vocabulary=store.tokenizer.vocabulary_size)
        model = our_model(shape)
        prompt = held_out.read(np.arange(PROMPT // CHUNK)).reshape(-1).tolist()
        live = searched(database.live(2), 2, Value.neighbor_and_continuation)
        by_hand = given_by_hand(shape)
        contestants: dict[str, Callable[[], object]] = {
            GIVEN: lambda: write(model, by_hand, prompt, LENGTH),
            LIVE: lambda: write(model, live, prompt, LENGTH),
        }
        seconds = clock.in_turns(contestants, rounds)
        if peer:
            taken = clock.seconds(peer_writing(shape, prompt))
            again = clock.in_turns(contestants, rounds)
            seconds = {name: (before + again[name]) / 2 for name, before in seconds.items()} | {PEER: taken}
        chunks = database.chunks
    # retro-pytorch writes one token more, from the logits after the last one of a sequence.
    written = {name: LENGTH - PROMPT + (name == PEER) for name in seconds}
    rate = {name: written[name] / taken for name, taken in seconds.items()}
    lines = [
        f"## From {PROMPT} to {LENGTH} tokens: d = {width}, {shape.layers} layers, k = {shape.k}, V = "
        f"{shape.vocabulary:,}, a database of {chunks:,} chunks",
        "",
        "| Writer | Tokens per second |",
        "| :-- | --: |",
        *(f"| {name} | {value:,.1f} |" for name, value in rate.items()),
    ]
    rows = [Row("retrieval", LIVE, "neighbors given by hand", rate[LIVE] / rate[GIVEN])]
    if peer:
        rows.append(Row("speed", "ours, neighbors given by hand", PEER, rate[GIVEN] / rate[PEER], 30))
        rows.append(Row("speed", LIVE, f"{PEER}, neighbors given by hand", rate[LIVE] / rate[PEER]))
    return "\n".join(lines), rows


def our_model(shape: Shape) -> RetroModel:
    """An untrained model."""
    torch.manual_seed(0)
    return RetroModel(shape.size, ModelConfig(shared_embeddings=True), shape.vocabulary).eval()


def given_by_hand(shape: Shape) -> Retrieve:
    """Full random neighbors, the same for the same chunk; no token is 0, retro-pytorch's padding."""

    def retrieve(chunks: Sequence[np.ndarray]) -> list[Found]:
        found = []
        for chunk in chunks:
            tokens = np.random.default_rng(chunk).integers(1, shape.vocabulary, (shape.k, 2 * CHUNK))
            lengths = np.full(shape.k, 2 * CHUNK)
            found.append(Found(np.zeros(shape.k, np.int64), np.zeros(shape.k, np.float32), tokens, lengths))
        return found

    return retrieve


def peer_writing(shape: Shape, prompt: Sequence[int]) -> Callable[[], object]:
    """The sampler of retro-pytorch as it is, with neighbors by hand where it would search."""
    from retro_pytorch.training import EOS_ID, TrainingWrapper

    model, by_hand = peer_model(shape), given_by_hand(shape)
    nn.init.constant_(model.to_logits.bias[EOS_ID : EOS_ID + 1], -1e9)  # at which it would end
    wrapper = TrainingWrapper.__new__(TrainingWrapper)  # its own wants an index, and builds one
    nn.Module.__init__(wrapper)
    wrapper.retro, wrapper.chunk_size, wrapper.max_seq_len = model, CHUNK, shape.length
    wrapper.fetch_knn_chunks_fn = lambda chunks: torch.from_numpy(
        np.stack([found.tokens for found in by_hand(chunks.numpy())])
    )

    def work() -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints where it retrieves
            wrapper.generate(torch.tensor([prompt]), filter_thres=1.0)  # the likeliest token alone

    return work


def lengths(_: Clock, *, rounds: int, width: int) -> tuple[str, list[Row]]:
    """Measure what a token costs after texts of several lengths."""
    shape = Shape(width, PLACES[-1] + CHUNK)
    model, retrieve = our_model(shape), given_by_hand(shape)
    tokens = np.random.default_rng(0).integers(1, shape.vocabulary, shape.length).tolist()
    taken: dict[int, list[float]] = {place: [] for place in PLACES}
    for _ in range(rounds):
        for place in PLACES:
            times = write(model, retrieve, tokens[:place], place + 1 + MORE).times
            taken[place].append((times[-1] - times[0]) / MORE)  # the first token comes with the pass over the prompt
    cost = {place: statistics.median(of_rounds) for place, of_rounds in taken.items()}
    lines = [
        f"## A token after a text of that length: d = {width}, {shape.layers} layers, V = {shape.vocabulary:,}",
        "",
        "| Tokens before | Milliseconds a token |",
        "| --: | --: |",
        *(f"| {place:,} | {1000 * taken:.2f} |" for place, taken in cost.items()),
    ]
    ratio = cost[PLACES[-1]] / cost[PLACES[0]]
    against = f"after {PLACES[0]}, cost"
    return "\n".join(lines), [
        Row("length", f"a token after {PLACES[-1]:,}", against, ratio, 1.5, smaller_is_better=True)
    ]


@dataclass(frozen=True)
class Case:
    """Texts to write, with drafts and without."""

    name: str
    model: LanguageModel
    retrieve: Retrieve
    prompts: list[list[int]]
    length: int
    must: float | None


def drafts(clock: Clock, *, rounds: int, folder: Path, artifacts: Path) -> tuple[str, list[Row]]:
    """Measure drafts on text with much overlap with its neighbors, and on text with little or none.

    Writers take turns at each text: what a drafter costs that proposes nothing is less than a machine's moods.
    """
    drafters: dict[str, Callable[[], Drafter | None]] = {
        GREEDY: lambda: None,
        "drafts from neighbors": lambda: Drafter(own_text=False),
        "drafts": Drafter,
    }
    lines = [
        f"## Drafts, run {folder.name}",
        "",
        "| Texts | Writer | Tokens per second | Drafts accepted | Tokens a pass | Texts as without drafts |",
        "| :-- | :-- | --: | --: | --: | --: |",
    ]
    rows = []
    for case in cases(folder, artifacts):
        texts: dict[str, list[Text]] = {name: [] for name in drafters}
        seconds = dict.fromkeys(drafters, 0.0)
        for prompt in case.prompts:
            last: dict[str, Text] = {}
            work = {
                name: lambda name=name, drafter=drafter: last.update(  # noqa: B023, used here
                    {name: write(case.model, case.retrieve, prompt, case.length, drafter())}  # noqa: B023
                )
                for name, drafter in drafters.items()
            }
            for name, taken in clock.in_turns(work, 2 * rounds + 1).items():
                seconds[name] += taken
                texts[name].append(last[name])
        count = sum(case.length - len(prompt) for prompt in case.prompts)
        for name, written in texts.items():
            proposed, accepted = (sum(getattr(text, what) for text in written) for what in ("proposed", "accepted"))
            same = sum(one.tokens == other.tokens for one, other in zip(written, texts[GREEDY], strict=True))
            lines.append(
                f"| {case.name} | {name} | {count / seconds[name]:,.0f} | "
                f"{f'{accepted / proposed:.0%} of {proposed:,}' if proposed else ''} | "
                f"{count / (count - accepted):.2f} | {same} of {len(written)} |"
            )
            if name != GREEDY:
                rows.append(Row("drafts", f"{name}, {case.name}", GREEDY, seconds[GREEDY] / seconds[name], case.must))
    return "\n".join(lines), rows


def cases(folder: Path, artifacts: Path) -> list[Case]:
    """Texts of a trained model with most and least overlap, and random ones of an untrained model of its size."""
    trained = open_model(folder)
    model, m, k, length = (
        trained.model,
        trained.model.chunk_length,
        trained.settings.k,
        trained.settings.sequence_length,
    )
    overrides = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["overrides"]
    with Inputs(compose([*overrides, f"paths.artifacts={artifacts.resolve()}"])) as inputs:
        store = inputs.corpus.stores["test"]
        retrieve = remembered(searched(inputs.database.live(k), k, trained.settings.value))
        prompts, overlaps = by_overlap(store, retrieve, m, length)
    order = np.argsort(overlaps, kind="stable")
    random = np.random.default_rng(0)
    vocabulary = trained.settings.vocabulary_size
    torch.manual_seed(0)
    noise = [Found(np.zeros(k, int), np.zeros(k, np.float32), random.integers(0, vocabulary, (k, 2 * m)),
                   np.full(k, 2 * m)) for _ in range(TEXTS)]  # fmt: skip
    return [
        Case("most overlap", model, retrieve, [prompts[row] for row in order[::-1][:TEXTS]], length, 1.8),
        Case("average", model, retrieve, prompts[:TEXTS], length, None),
        Case("least overlap", model, retrieve, [prompts[row] for row in order[:TEXTS]], length, 0.97),
        Case(
            "untrained, random neighbors",
            trained.settings.build().eval(),
            lambda chunks: [noise[int(chunk.sum()) % TEXTS] for chunk in chunks],
            random.integers(0, vocabulary, (TEXTS, 4 * m)).tolist(),
            length,
            0.97,
        ),
    ]


def by_overlap(store, retrieve: Retrieve, m: int, length: int) -> tuple[list[list[int]], np.ndarray]:
    """Return prompts of a store, and how much of the real text that follows is in the neighbors of its own chunks."""
    count = length // m
    whole = np.flatnonzero(store.real_tokens(np.arange(store.chunks), count) == length)
    first = np.random.default_rng(0).choice(whole, min(CANDIDATES, len(whole)), replace=False)
    texts = store.read(first, count).astype(np.int64)
    found = retrieve(list(texts.reshape(-1, m)))
    overlaps = np.zeros(len(first))
    for row, text in enumerate(texts):
        for chunk in range(4, count - 1):
            known = found[row * count + chunk - 1]
            grams = {tuple(tokens[i : i + 4]) for tokens in known.tokens.tolist() for i in range(len(tokens) - 3)}
            own = text[chunk * m : (chunk + 1) * m].tolist()
            overlaps[row] += sum(tuple(own[i : i + 4]) in grams for i in range(m - 3))
    return [text[: 4 * m].tolist() for text in texts], overlaps


def remembered(retrieve: Retrieve) -> Retrieve:
    """Search for a chunk once: what is measured is the writing."""
    known: dict[bytes, Found] = {}

    def again(chunks: Sequence[np.ndarray]) -> list[Found]:
        new = {key: chunk for chunk in chunks if (key := chunk.tobytes()) not in known}
        if new:
            known.update(zip(new, retrieve(list(new.values())), strict=True))
        return [known[chunk.tobytes()] for chunk in chunks]

    return again


if __name__ == "__main__":
    main()
