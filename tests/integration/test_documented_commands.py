"""Every command of README.md and docs/ is run as it stands there, made small by what is added to it.

A command that cannot run in a test stands in `NOT_RUN` with the reason; one that is neither listed there nor a command
of retro_lab fails, so that nothing is advertised which nobody runs.
"""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig

from retro_lab import cli

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(?:bash|sh|shell|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)

NOT_RUN = {
    "srun --nodes 4 --ntasks-per-node 8 python -m retro_lab +experiment=quickstart task=build": "it needs SLURM; "
    "test_command_line.py shares a build among processes with SLURM's variables",
    "torchrun --nproc-per-node 8 -m retro_lab +experiment=quickstart task=build": "README.md has it with two ranks",
    "make test": "it runs this test",
    "source .venv/bin/activate": "it changes the shell; these tests already run in the environment",
    "make quickstart": "it installs; the command that it ends with is run by the next test",
}
NEEDS_THE_HUB = {"corpus=massivetext_like"}
"""Such a command is composed, and goes no further: tests/corpus reads these corpora from files of the same layout."""

SMALL = {
    "corpus.max_bytes": "4e4",
    "corpus.validation_fraction": "0.4",
    "tokenizer.vocabulary_size": "300",
    "data.sequence_length": "64",
    "evaluation.stride": "32",
    "evaluation.curve_points": "1",
    "evaluation.curve_tokens": "200",
    "size.width": "16",
    "size.ffw_width": "32",
    "size.layers": "1",
    "size.cca_layers": "[1]",
    "size.encoder_layers": "1",
    "size.encoder_width": "16",
    "size.encoder_ffw_width": "32",
    "schedule.tokens": "512",
    "schedule.warmup_steps": "2",
}


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
    folder = tmp_path_factory.mktemp("documented")
    sources = sorted((REPOSITORY / "retro_lab").rglob("*.py"))[:40]
    rows = [{"text": path.read_text(encoding="utf-8")[:2000]} for path in sources if path.stat().st_size]
    (folder / "my.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "embedder").symlink_to(tiny_bert)
    return folder


def small(arguments: list[str]) -> list[str]:
    """Return the overrides that make a command of retro_lab small, but for those that it gives itself."""
    if not any(argument.startswith(("+experiment", "+sweep")) for argument in arguments):
        return []
    given = {argument.partition("=")[0].lstrip("+~") for argument in arguments}
    return [f"{key}={value}" for key, value in SMALL.items() if key not in given] + ["embedder.model=embedder"]


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_documented_commands(
    command: Command, workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if command.text in NOT_RUN:
        pytest.skip(NOT_RUN[command.text])
    words = shlex.split(command.text)
    monkeypatch.chdir(workplace)
    arguments = words[words.index("retro_lab") + 1 :] if "retro_lab" in words else []
    if words[0] == "torchrun" or "trainer=ddp" in words:
        launcher = ["-m", "torch.distributed.run", "--standalone"] if words[0] == "torchrun" else []
        whole = [sys.executable, *launcher, *words[1:], *small(arguments)]
        done = subprocess.run(whole, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return
    assert words[:3] == ["python", "-m", "retro_lab"], f"{command} is not run by any test; say why in NOT_RUN"
    if NEEDS_THE_HUB & set(arguments):
        arguments += ["--cfg", "job"]
    assert run(arguments + small(arguments), monkeypatch) == 0, capfd.readouterr().err


def test_the_quickstart_of_make_is_a_documented_command(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dry = subprocess.run(["make", "-n", "quickstart"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    words = shlex.split(dry.stdout.splitlines()[-1])
    assert words[1:3] == ["-m", "retro_lab"]
    monkeypatch.chdir(workplace)
    assert run(words[3:] + small(words[3:]), monkeypatch) == 0


def test_every_reason_belongs_to_a_command() -> None:
    assert set(NOT_RUN) <= {command.text for command in COMMANDS}
    assert {name for name in NEEDS_THE_HUB if any(name in command.text for command in COMMANDS)} == NEEDS_THE_HUB


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command line in this process, which has torch loaded, and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["retro-lab", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        HydraConfig.instance().cfg = None
    return 0
