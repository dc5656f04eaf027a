"""A trained run as the server wants it: a live search of its database, and its model."""

from collections.abc import Callable, Sequence

from retro_lab.corpus.tokenizer import DocumentTokenizer
from retro_lab.generation.drafts import Drafter
from retro_lab.generation.generator import Generator
from retro_lab.generation.sampling import Sampling
from retro_lab.generation.stretches import stretches
from retro_lab.retrieval.live import LiveRetrieval
from retro_lab.runs.search import Searched, search
from retro_lab.serving.engine import Facts, Wanted, Written


class ServedRun:
    """A model and, unless it retrieves nothing, what it retrieves from."""

    def __init__(
        self,
        facts: Facts,
        tokenizer: DocumentTokenizer,
        live: LiveRetrieval | None,
        generator: Callable[[int], Generator],
    ) -> None:
        """Serve a model.

        Args:
            facts: What it is.
            tokenizer: Of the model.
            live: Searches the database; None if the model retrieves nothing.
            generator: Returns what writes with k neighbors of each chunk.
        """
        self.facts = facts
        self._tokenizer, self._live, self._generator = tokenizer, live, generator

    def search(self, texts: Sequence[str], k: int) -> list[Searched]:
        """Find the k nearest neighbors of each text, as `retro_lab.runs.search` does."""
        assert self._live is not None
        return search(self._live, texts, k)

    def generate(self, prompts: Sequence[str], wanted: Wanted) -> list[Written]:
        """Continue each prompt; it retrieves at the end of each of its chunks and of those that are written."""
        written = self._generator(wanted.k).generate(
            self._tokenizer.encode(prompts),
            max_tokens=wanted.max_tokens,
            sampling=Sampling(wanted.temperature, wanted.top_k, wanted.top_p, wanted.seed),
            stop=wanted.stop,
            retrieve_every=wanted.retrieve_every,
            drafter=Drafter if wanted.drafts else None,
        )
        return [
            Written(
                text=each.text,
                tokens=len(each.tokens),
                finish_reason=each.finish.value,
                stretches=stretches(each, self._tokenizer, self._live.store if self._live is not None else None),
            )
            for each in written
        ]
