"""Every command of README.md and docs/ is run as it stands there, made small by what is added to it.

A command that cannot run in a test stands in `NOT_RUN` with the reason; one that is neither listed there nor a command
of retro_lab fails, so that nothing is advertised which nobody runs.
"""

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from in_process import REPOSITORY, furnish, run, small

DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(?:bash|sh|shell|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

NOT_RUN = {
    "srun --nodes 4 --ntasks-per-node 8 python -m retro_lab +experiment=quickstart task=build": "it needs SLURM; "
    "test_ranks.py shares a build among processes with SLURM's variables",
    "torchrun --nproc-per-node 8 -m retro_lab +experiment=quickstart task=build": "README.md has it with two ranks",
    "python -m retro_lab +experiment=quickstart trainer=ddp trainer.accelerator=cpu trainer.devices=2": "it is "
    "in docs/cluster.md with another precision",
    "retro-lab submit +sweep=neighbors trainer=gpu": "it needs SLURM; tests/cluster submits a sweep to a real one",
    "python -m retro_lab -m +sweep=neighbors retrieval.k=1 trainer=ddp trainer.accelerator=cpu trainer.devices=2 "
    "trainer.precision=32-true": "test_ranks.py runs such a sweep",
    "python -m retro_lab +experiment=paper_7_5b task=plan trainer=fsdp trainer.devices=8": "the tests' batches are too "
    "small for 8 devices; tests/tasks/test_plan.py names trainers that fit",
    "python -m retro_lab +experiment=quickstart task=build build.dispatcher=ray build.workers=2": "test_dispatchers.py "
    "builds with Ray",
    "python -m retro_lab +experiment=quickstart task=evaluate 'evaluation.datasets=[test,c4,pile/arxiv,lambada]' "
    "+corpus@corpora.lambada=lambada corpora.lambada.dataset=lambada_test.jsonl": "it needs "
    "the hub; test_datasets.py scores all data sets",
    "python -m retro_lab +experiment=quickstart task=zero_shot 'task.tasks=[lambada_openai,my_task.yaml]' "
    "task.limit=500": "its questions are on the hub; test_zero_shot.py scores tasks over local files",
    "retro-lab status": "it needs submitted jobs; tests/cluster looks at some",
    "python -m retro_lab +experiment=natural_questions": "it needs the paper's models; tests/tasks/test_answer.py "
    "fine-tunes small ones",
    "python -m retro_lab +experiment=natural_questions_mini task.start=outputs/my_run task.train=train.json "
    "task.validation=dev.json": "tests/tasks/test_answer.py runs it on a run and questions of its own",
    "python -m retro_lab +experiment=quickstart task=serve": "it runs until Ctrl-C; test_command_line.py serves a run",
    "python -m retro_lab +experiment=quickstart task=serve task.port=0": "test_command_line.py serves a run so",
    **dict.fromkeys(
        (
            "curl -s http://127.0.0.1:8000/search -H 'Content-Type: application/json' -d "
            """'{"query": ["import numpy as np"], "n_docs": 2}'""",
            "curl -s http://127.0.0.1:8000/generate -H 'Content-Type: application/json' -d "
            """'{"prompt": "import numpy", "max_tokens": 40}'""",
        ),
        "it needs a server; test_command_line.py runs it against one",
    ),
    **{
        f"python -m retro_lab +experiment=quickstart task=generate {options}": "test_command_line.py generates "
        "with these options"
        for options in (
            "'prompt=def main(' task.temperature=0.8 task.top_p=0.95 task.seed=1",
            "task.prompts=prompts.jsonl task.output=texts.jsonl",
            "'prompt=import numpy' task.retrieve_every=8",
            """'prompt=import numpy' 'task.neighbors=["import numpy as np"]'""",
            "'prompt=import numpy' task.drafts=true",
        )
    },
    "python -m retro_lab backbone=hf backbone.model=HuggingFaceTB/SmolLM2-135M": "it needs the hub; test_retrofit.py "
    "runs it on a folder",
    "python -m retro_lab +experiment=retrofit_smollm2 backbone.model=SmolLM2-135M.gguf": "it needs the model's file; "
    "test_retrofit.py RETROfits a folder",
    "python -m retro_lab task=plan size=7_5b backbone=hf backbone.model=meta-llama/Llama-2-7b-hf": "it needs the hub; "
    "tests/tasks/test_plan.py plans with this model's configuration",
    "source .venv/bin/activate": "it changes the shell; these tests already run in the environment",
    "make test": "it runs this test",
    "make quickstart": "it installs; the command that it ends with is run by the next test",
}
NEEDS_THE_HUB = {"+experiment=paper_172m"}
"""Such a command is composed, and goes no further: tests/corpus reads these corpora from files of the same layout."""


@dataclass(frozen=True)
class Command:
    """A line of a shell block."""

    document: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}: {self.text}"


def documented() -> list[Command]:
    """Return the commands of all shell blocks in order; a continued line is one command."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for block in BLOCK.finditer(text):
            first = text[: block.start(1)].count("\n") + 1
            lines = block[1].replace("\\\n", "  ").splitlines()
            for offset, line in enumerate(lines):
                words = shlex.split(line, comments=True)
                if words:
                    found.append(Command(path.relative_to(REPOSITORY).as_posix(), first + offset, shlex.join(words)))
    return found


COMMANDS = documented()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A folder with a corpus of the user's own; all commands share its artifacts."""
    return furnish(tmp_path_factory.mktemp("documented"), tiny_bert)


def small_if_it_builds(arguments: list[str]) -> list[str]:
    """Return what makes a command small; what names no experiment only shows something, or reads what is there."""
    return small(arguments) if any(text.startswith(("+experiment", "+sweep")) for text in arguments) else []


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_documented_commands(
    command: Command, workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if command.text in NOT_RUN:
        pytest.skip(NOT_RUN[command.text])
    words = shlex.split(command.text)
    monkeypatch.chdir(workplace)
    if words[0] == "retro-lab":
        words[:1] = ["python", "-m", "retro_lab"]
    arguments = words[words.index("retro_lab") + 1 :] if "retro_lab" in words else []
    if words[0] == "torchrun" or ({"trainer=ddp", "trainer=fsdp"} & {*words} and "submit" not in words):
        launcher = ["-m", "torch.distributed.run", "--standalone"] if words[0] == "torchrun" else []
        whole = [sys.executable, *launcher, *words[1:], *small_if_it_builds(arguments)]
        done = subprocess.run(whole, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return
    assert words[:3] == ["python", "-m", "retro_lab"], f"{command} is not run by any test; say why in NOT_RUN"
    if NEEDS_THE_HUB & set(arguments):
        arguments += ["--cfg", "job"]
    assert run(arguments + small_if_it_builds(arguments), monkeypatch) == 0, capfd.readouterr().err


def test_the_quickstart_of_make_is_a_documented_command(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dry = subprocess.run(
        ["make", "--no-print-directory", "-n", "quickstart"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    words = shlex.split(dry.stdout.splitlines()[-1])
    assert words[1:3] == ["-m", "retro_lab"]
    monkeypatch.chdir(workplace)
    assert run(words[3:] + small_if_it_builds(words[3:]), monkeypatch) == 0


@pytest.mark.parametrize(
    ("document", "before"),
    [
        ("docs/export.md", ["+experiment=quickstart", "+experiment=quickstart task=export task.folder=my_retro"]),
        ("docs/generate.md", ["+experiment=quickstart"]),
    ],
)
def test_documented_python(document: str, before: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of a document runs from top to bottom, after the commands that it needs."""
    monkeypatch.chdir(workplace)
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    for command in before:
        assert f"python -m retro_lab {command}" in text
        arguments = command.split()
        assert run(arguments + small_if_it_builds(arguments), monkeypatch) == 0
    # What makes the quickstart small is a part of its folder's name.
    trained = [path for path in (workplace / "outputs").glob("*quickstart*/retro/model.json") if path.is_file()]
    if not (quickstart := workplace / "outputs" / "quickstart").exists():
        quickstart.symlink_to(max(trained, key=lambda path: path.stat().st_mtime).parents[1])
    blocks = PYTHON.findall(text)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, document, "exec"), names)


def test_every_reason_belongs_to_a_command() -> None:
    assert set(NOT_RUN) <= {command.text for command in COMMANDS}
    assert {name for name in NEEDS_THE_HUB if any(name in command.text for command in COMMANDS)} == NEEDS_THE_HUB
