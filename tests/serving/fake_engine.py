"""A run without a model: what it finds and writes follows from the texts alone."""

import threading
from collections.abc import Sequence

from retro_lab.generation.stretches import Stretch
from retro_lab.runs.examples import FoundPassage
from retro_lab.runs.search import Neighbor, Searched
from retro_lab.serving.bodies import Limits
from retro_lab.serving.engine import Facts, Wanted, Written

FACTS = Facts(
    run="my run",
    model="retro",
    parameters=1234,
    k=2,
    chunk_length=8,
    sequence_length=64,
    vocabulary_size=300,
    database="9 chunks of corpus (Flat)",
    corpus="corpus",
    max_neighbors=9,
)
LIMITS = Limits(max_texts=4, max_characters=1000, max_tokens=20, max_body_bytes=10_000, max_waiting=8)
HOSTILE = '</script><img src=x onerror="alert(1)">\x1b[2J \u202e'


class FakeEngine:
    """Finds `FACTS.max_neighbors` chunks for every text, and writes every prompt backwards."""

    def __init__(self, facts: Facts = FACTS) -> None:
        self.facts = facts
        self.searches: list[list[str]] = []
        self.wanted: list[Wanted] = []
        self.open = threading.Event()
        """Clear it to keep the thread busy."""
        self.open.set()
        self.begun = threading.Semaphore(0)

    def search(self, texts: Sequence[str], k: int) -> list[Searched]:
        self._wait()
        self.searches.append(list(texts))
        if "poison" in texts:
            raise RuntimeError("/secret/path")
        return [Searched(chunks=[text], neighbors=[neighbor(text, rank) for rank in range(k)]) for text in texts]

    def generate(self, prompts: Sequence[str], wanted: Wanted) -> list[Written]:
        self._wait()
        self.wanted.append(wanted)
        found = [FoundPassage(chunk=7, document=HOSTILE, text=HOSTILE, continuation=" more", distance=0.5)]
        return [
            Written(
                text=prompt[::-1],
                tokens=len(prompt),
                finish_reason="end",
                stretches=[
                    Stretch(prompt=prompt, text=prompt[-1], neighbors=found if wanted.k else []),
                    Stretch(prompt="", text=prompt[-2::-1] + HOSTILE, neighbors=[]),
                ],
            )
            for prompt in prompts
        ]

    def _wait(self) -> None:
        self.begun.release()
        assert self.open.wait(30)


def neighbor(text: str, rank: int) -> Neighbor:
    return Neighbor(
        chunk=rank,
        document=f"document of {text}",
        text=f"{text} {rank}",
        continuation=HOSTILE,
        distance=rank + len(text) / 2**10,
        query_chunk=0,
    )
