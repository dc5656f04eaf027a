"""The real command in a process of its own: what it imports, prints and completes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import retro_lab

ROOT = Path(retro_lab.__file__).parents[1]
HEAVY = ("torch", "transformers", "pytorch_lightning", "lightning", "datasets", "faiss", "matplotlib", "wandb", "numpy")


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_and_composition_import_nothing_heavy() -> None:
    code = (
        "import sys, retro_lab.cli\n"
        "from retro_lab.config import compose, help\n"
        "compose.compose(['+experiment=quickstart'])\n"
        "help.help_text(), help.group_help('corpus')\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = python("-c", code)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_module_prints_help() -> None:
    done = python("-m", "retro_lab", "--help")
    assert done.returncode == 0
    assert "python -m retro_lab +experiment=NAME" in done.stdout


def test_an_error_is_one_line_with_exit_code_2(workspace: Path) -> None:
    done = python("-m", "retro_lab", "+experiment=quickstart", "retrieval.kk=4")
    assert done.returncode == 2
    assert done.stderr == "error: There is no setting retrieval.kk; did you mean retrieval.k?\n"
    assert done.stdout == ""
    assert list(workspace.iterdir()) == []


def test_the_configuration_can_be_printed(workspace: Path) -> None:
    done = python("-m", "retro_lab", "+experiment=quickstart", "retrieval.k=4", "--cfg", "job", "-p", "retrieval")
    assert done.returncode == 0, done.stderr
    assert "k: 4" in done.stdout
    assert list(workspace.iterdir()) == []


@pytest.mark.parametrize(("line", "choice"), [("+sweep=", "+sweep=neighbors"), ("size=", "size=172m")])
def test_completion_knows_the_options(line: str, choice: str) -> None:
    words = f"retro-lab {line}"
    code = "import sys; sys.argv[0] = 'retro-lab'; from retro_lab.cli import main; main()"
    done = python("-c", code, "-sc", "query=bash", COMP_LINE=words, COMP_POINT=str(len(words)))
    assert choice in done.stdout.split(), done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_output_is_one_line_with_exit_code_2() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "retro_lab", "--help"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
