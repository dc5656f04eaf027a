"""A trained run in Python: its model, what that writes, and what is found in its database.

    run = open_run("outputs/my_run")
    run.model, run.tokenizer, run.settings                   # from the folder alone, wherever it was copied to
    run.generate("import numpy", max_tokens=64).text         # retrieves from the database of the run
    run.search("import numpy", 2)                            # and this searches it

The database is opened on first use. It is never built here, which could take hours.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from retro_lab import console
from retro_lab.corpus.tokenizer import DocumentTokenizer
from retro_lab.errors import ConfigurationError
from retro_lab.model.language_model import LanguageModel
from retro_lab.runs.trained_model import ModelSettings, TrainedModel, open_model

if TYPE_CHECKING:
    from retro_lab.generation.generator import Generated
    from retro_lab.generation.stretches import Stretch
    from retro_lab.retrieval.database import Database
    from retro_lab.runs.search import Neighbor
    from retro_lab.tasks.opened import OpenedModel

BATCH_SIZE = 8
"""Texts that are written together."""


def open_run(
    folder: Path | str, model: str | None = None, *, base: str | None = None, artifacts: Path | str | None = None
) -> "Run":
    """Open a trained run.

    Args:
        folder: Of a run or of one of its models, wherever it was copied to.
        model: `retro` or `baseline`; None takes the RETRO of a run, or the baseline if there is no RETRO.
        base: Of a RETROfit of a pretrained decoder: where that decoder is now, if not where it was in training.
        artifacts: Folder of the artifacts, which hold the database; None takes the run's `paths.artifacts`.

    Raises:
        ArtifactError: There is no such model, one of its files is damaged, or the decoder that it is a RETROfit of is
            gone or another one.
    """
    return Run(open_model(folder, model, base), None if artifacts is None else Path(artifacts))


class Run:
    """A trained model, and the database of its run.

    Attributes:
        folder: Of the model.
        settings: Everything that the model is built from.
        model: In evaluation mode. It is on the CPU in float32; where and as what `model.to` puts it, it writes.
        tokenizer: Its own.
    """

    folder: Path
    settings: ModelSettings
    model: LanguageModel
    tokenizer: DocumentTokenizer

    def __init__(self, trained: TrainedModel, artifacts: Path | None = None) -> None:
        """Keep a model; `artifacts` is as for `open_run`."""
        self.folder, self.settings = trained.folder, trained.settings
        self.model, self.tokenizer = trained.model, trained.tokenizer
        self._trained, self._artifacts = trained, artifacts

    @overload
    def search(self, texts: str, k: int) -> "list[Neighbor]": ...

    @overload
    def search(self, texts: list[str], k: int) -> "list[list[Neighbor]]": ...

    def search(self, texts: str | list[str], k: int) -> "list[Neighbor] | list[list[Neighbor]]":
        """Find the k nearest neighbors of texts of any length in the database.

        Args:
            texts: A text, or several.
            k: Neighbors of each.

        Returns:
            The neighbors of the text, nearest first, or a list for each text. Each has its `text`, its `continuation`,
            its `distance`, and the `document` that it is from. Of a text that is longer than a chunk, the neighbors
            of its chunks are ranked together.

        Raises:
            ArtifactError: The database is not there.
            ConfigurationError: It does not fit the model, or has no k chunks.
        """
        from retro_lab.runs.search import search

        given = _texts("texts", texts)
        if k < 1:
            raise ConfigurationError(f"k must be 1 or more, not {k}.")
        found = [searched.neighbors for searched in search(self._opened.live(k), given, k)]
        return found[0] if isinstance(texts, str) else found

    @overload
    def generate(
        self, prompts: str, *, max_tokens: int = ..., temperature: float = ..., top_k: int | None = ...,
        top_p: float | None = ..., seed: int = ..., stop: Sequence[str] = ..., k: int | None = ...,
        retrieve_every: int | None = ..., neighbors: Sequence[str] | None = ..., drafts: bool = ...,
    ) -> "Generated": ...  # fmt: skip

    @overload
    def generate(
        self, prompts: list[str], *, max_tokens: int = ..., temperature: float = ..., top_k: int | None = ...,
        top_p: float | None = ..., seed: int = ..., stop: Sequence[str] = ..., k: int | None = ...,
        retrieve_every: int | None = ..., neighbors: Sequence[str] | None = ..., drafts: bool = ...,
    ) -> "list[Generated]": ...  # fmt: skip

    def generate(
        self,
        prompts: str | list[str],
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: Sequence[str] = (),
        k: int | None = None,
        retrieve_every: int | None = None,
        neighbors: Sequence[str] | None = None,
        drafts: bool = False,
    ) -> "Generated | list[Generated]":
        """Continue prompts. At the end of each of its chunks a text retrieves, and what follows attends to that.

        Args:
            prompts: A text, or several, which may be of unequal length.
            max_tokens: Most tokens to add to each.
            temperature: What logits are divided by before a token is drawn; 0 takes the most likely token.
            top_k: Draw from this many of the most likely tokens; None draws from all.
            top_p: Draw from the fewest most likely tokens that together have this probability; None draws from all.
            seed: Of the draws; each text has draws of its own.
            stop: Strings at the first of which a text ends, without it.
            k: Neighbors of each chunk; None takes as many as in training, 0 turns retrieval off.
            retrieve_every: Tokens from one retrieval to the next, up to a chunk's; None retrieves at the end of each
                chunk.
            neighbors: Texts that every chunk reads as its neighbors, in place of what a search finds.
            drafts: Propose what follows in the neighbors and verify it in one pass: the same text, faster where it
                copies.

        Returns:
            What was written: one for a text, a list for several.

        Raises:
            ArtifactError: The database is not there.
            ConfigurationError: An argument is out of its range, or the model or the database cannot do what it asks.
        """
        from retro_lab.generation.drafts import Drafter
        from retro_lab.generation.sampling import Sampling

        given = _texts("prompts", prompts)
        if neighbors is not None:
            _texts("neighbors", neighbors)
            if isinstance(neighbors, str):
                raise ConfigurationError("neighbors is a list of texts; put a single one into a list.")
            if k:
                raise ConfigurationError(f"neighbors take the place of the k={k} that a search finds; leave one out.")
            k = 0
        sampling = Sampling(temperature, top_k, top_p, seed)
        written = self._opened.generator(k).generate(
            self.tokenizer.encode(given),
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            retrieve_every=retrieve_every,
            neighbors=neighbors,
            drafter=Drafter if drafts else None,
        )
        return written[0] if isinstance(prompts, str) else written

    def stretches(self, written: "Generated") -> "list[Stretch]":
        """Cut a text where something was retrieved: each stretch has what the next one attends to as `neighbors`.

        Neighbors that were given by hand are left out.

        Raises:
            ArtifactError: The database, which the text retrieved from, is not there any more.
        """
        from retro_lab.generation.stretches import stretches
        from retro_lab.retrieval.neighbors import NO_NEIGHBOR

        found = any((chunk.found.ids != NO_NEIGHBOR).any() for chunk in written.chunks)
        return stretches(written, self.tokenizer, self._opened.database.store if found else None)

    def retrieve(self, chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the neighbors of chunks, as many as in training: what `RetroForCausalLM.generate(retrieve=)` takes.

        Args:
            chunks: Tokens, int64 [n, m].

        Returns:
            What the model reads of the neighbors of each: tokens int64 [n, k, r], and how many of those are real,
            int64 [n, k], 0 for a missing neighbor.

        Raises:
            ArtifactError: The database is not there.
            ConfigurationError: The model is a baseline, or the database does not fit it.
        """
        from retro_lab.export.neighbors import as_arrays

        if not self.settings.k:
            raise ConfigurationError(f"{self.folder} is a baseline, which retrieves nothing; open a RETRO.")
        tokens, lengths = as_arrays(self._opened.retrieve(self.settings.k))(chunks)
        return np.asarray(tokens), np.asarray(lengths)

    @cached_property
    def _opened(self) -> "OpenedModel":
        from retro_lab.tasks.opened import OpenedModel  # which loads Lightning, and a model alone needs it not

        return OpenedModel(self._trained, self._database, BATCH_SIZE)

    def _database(self) -> "Database":
        """Open the run's database, of which nothing is built."""
        from retro_lab.artifacts.store import FinishedArtifacts
        from retro_lab.config.written import database_config, find_config
        from retro_lab.tasks.build import Inputs

        run = find_config(self.folder)
        config = database_config(run, self.settings)
        advice = (
            f"build the run's database with `{run.command} task=build`, say where it is with open_run(FOLDER, "
            "artifacts=PATH), or generate with k=0 or neighbors of your own"
        )
        root = self._artifacts or Path(config.paths.artifacts)
        with console.silence():  # which documents were dropped was said when they were
            return Inputs(config, FinishedArtifacts(root, advice)).database


def _texts(name: str, given: str | Sequence[str]) -> list[str]:
    """Return an argument that is a text, or several, as a list.

    Raises:
        ConfigurationError: It is something else.
    """
    texts = [given] if isinstance(given, str) else list(given)
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise ConfigurationError(f"{name} must be a text or a list of texts, not {type(wrong[0]).__name__}.")
    return texts
