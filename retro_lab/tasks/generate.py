"""`task=generate`: continue prompts with a trained model, which retrieves from its database as it writes.

Standard output has the texts alone, so that they can be piped; everything else, and the neighbors beside the text, goes
to standard error.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from rich.text import Text

from retro_lab import console
from retro_lab.artifacts.disk import write_file
from retro_lab.errors import ConfigurationError
from retro_lab.generation.drafts import Drafter
from retro_lab.generation.generator import Generated, GenerationInterrupted, Generator
from retro_lab.generation.sampling import Sampling
from retro_lab.generation.stretches import stretches
from retro_lab.retrieval.config import Value
from retro_lab.runs.folder import RunFolder
from retro_lab.tasks.build import Inputs
from retro_lab.tasks.checks import check_evaluation
from retro_lab.tasks.config import RunConfig
from retro_lab.tasks.generated_text import PROMPT, WRITTEN, beside_neighbors
from retro_lab.tasks.opened import OpenedModel, chosen_model, open_with_inputs
from retro_lab.tasks.prompts import read_prompts
from retro_lab.tasks.task_config import GenerateConfig


def run(config: RunConfig, folder: RunFolder) -> None:
    """Continue the prompts, and print or write the texts; only rank 0 does so.

    Raises:
        ArtifactError: The run folder holds no such model, or the output cannot be written.
        CorpusError: The file of prompts cannot be read.
        ConfigurationError: The model cannot read the database, or a setting does not fit the model.
        GenerationInterrupted: Ctrl-C; what was written until then is printed.
    """
    if not console.is_main_process():
        return
    task = config.task
    assert isinstance(task, GenerateConfig)
    check_evaluation(config)
    prompts = read_prompts(Path(task.prompts)) if task.prompt is None and task.prompts else [task.prompt or ""]
    _check_output(task.output)
    path = chosen_model(folder, task.model)
    config = replace(config, evaluation=replace(config.evaluation, batch_size=task.batch_size))
    with Inputs(config) as inputs:
        opened = open_with_inputs(config, path, inputs)
        k = 0 if task.neighbors else opened.trained.settings.k if task.k is None else task.k
        generator = opened.generator(k)
        if k:  # so that the speed is not that of reading the index
            opened.live(k).search(list(opened.database.store.read(np.arange(1))))
        console.status("generating", f"{path}; {_retrieval(task, k, opened)}")
        begun = time.perf_counter()
        try:
            written = _generate(generator, prompts, task, config.seed)
        except GenerationInterrupted as interrupted:
            _show(task, prompts, interrupted.generated, opened, k, time.perf_counter() - begun)
            raise
        _show(task, prompts, written, opened, k, time.perf_counter() - begun)


def _check_output(output: str | None) -> None:
    """Find out before anything is written whether it has a place.

    Raises:
        ConfigurationError: It is a folder.
    """
    if output is not None and Path(output).is_dir():
        raise ConfigurationError(f"task.output={output} is a folder; name a file.")


def _retrieval(task: GenerateConfig, k: int, opened: OpenedModel) -> str:
    if task.neighbors:
        return f"neighbors given by hand: {len(task.neighbors)}"
    return f"k = {k}, from {opened.database.description}" if k else "no retrieval"


def _generate(generator: Generator, prompts: Sequence[str], task: GenerateConfig, seed: int) -> list[Generated]:
    tokens = generator.tokenizer.encode(prompts)
    with console.progress("generating", "texts", len(prompts)) as advance:
        return generator.generate(
            tokens,
            max_tokens=task.max_tokens,
            sampling=Sampling(task.temperature, task.top_k, task.top_p, seed if task.seed is None else task.seed),
            stop=task.stop,
            retrieve_every=task.retrieve_every,
            neighbors=task.neighbors or None,
            drafter=Drafter if task.drafts else None,
            advance=advance,
        )


def _show(
    task: GenerateConfig,
    prompts: Sequence[str],
    written: Sequence[Generated],
    opened: OpenedModel,
    k: int,
    seconds: float,
) -> None:
    """Print or write texts, then their neighbors and how fast they were written."""
    tokenizer, settings = opened.trained.tokenizer, opened.trained.settings
    store = opened.database.store if k else None
    if task.output is None:
        for number, (prompt, text) in enumerate(zip(prompts, written, strict=True)):
            _print(prompt, text.text, first=not number)
    else:
        rows = [
            {
                "prompt": prompt,
                "text": text.text,
                "tokens": len(text.tokens),
                "finish_reason": text.finish.value,
                "draft_tokens": text.proposed,
                "accepted_draft_tokens": text.accepted,
                "stretches": [asdict(stretch) for stretch in stretches(text, tokenizer, store)],
            }
            for prompt, text in zip(prompts, written, strict=True)
        ]
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        console.status("texts", str(write_file(Path(task.output), content.encode("utf-8"))))
    if task.show_neighbors:
        # Where a neighbor ends and its continuation begins in what is read of them.
        border = 0 if settings.value is Value.continuation else settings.model.chunk_length
        for text in written:
            console.messages.print(beside_neighbors(text, tokenizer, store, border))
    counts = Counter(text.finish.value for text in written)
    console.status("ended by", ", ".join(f"{name}: {count}" for name, count in sorted(counts.items())))
    console.status("speed", _speed(written, seconds, task.drafts))


def _print(prompt: str, text: str, *, first: bool) -> None:
    """Print a text to standard output: as it is, or with what a terminal could obey made visible."""
    gap = "" if first else "\n"
    if console.output.is_terminal:
        parts = (console.visible(prompt), PROMPT), (console.visible(text), WRITTEN)
        console.output.print(Text.assemble(gap, *parts), soft_wrap=True)
    else:
        console.output.file.write(f"{gap}{prompt}{text}\n")


def _speed(written: Sequence[Generated], seconds: float, drafts: bool) -> str:
    tokens, proposed = sum(len(text.tokens) for text in written), sum(text.proposed for text in written)
    speed = f"{tokens:,} tokens in {seconds:.1f} s: {tokens / seconds:,.1f} tokens per second, searches included"
    if not drafts:
        return speed
    accepted = sum(text.accepted for text in written)
    share = f" ({accepted / proposed:.0%})" if proposed else ""
    return f"{speed}; {accepted:,} of {proposed:,} draft tokens accepted{share}"
