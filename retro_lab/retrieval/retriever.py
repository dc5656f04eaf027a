"""What the chunks of a text retrieve, wherever it comes from: the interface that models are trained and scored with."""

from abc import ABC, abstractmethod

from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.tokens import TokenStore
from retro_lab.retrieval.config import Value
from retro_lab.retrieval.neighbors import Neighbors
from retro_lab.retrieval.overlaps import Overlaps, OverlapsStage
from retro_lab.retrieval.sequences import Retrieved


class Retriever(ABC):
    """Finds neighbors for the chunks of any text; what was found once is kept as an artifact.

    Attributes:
        reveals: Whether a chunk may retrieve the text that is to be predicted, as from the oracle alone.
    """

    reveals: bool = False

    def __init__(self, artifacts: ArtifactStore) -> None:
        """Keep what is found in `artifacts`."""
        self._artifacts = artifacts
        # What was built, by the fingerprint of the text.
        self._neighbors: dict[str, Neighbors] = {}
        self._overlaps: dict[str, Overlaps] = {}

    @property
    @abstractmethod
    def chunks(self) -> int:
        """Chunks that can be retrieved."""

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Tokens in them, without padding."""

    @property
    @abstractmethod
    def description(self) -> str:
        """What is retrieved from, in words."""

    @abstractmethod
    def source_of(self, queries: TokenStore) -> TokenStore:
        """Return the tokens that the neighbors of a text are chunks of."""

    @abstractmethod
    def _find(self, queries: TokenStore) -> Neighbors:
        """Find the neighbors of every chunk of a text."""

    def neighbors_of(self, queries: TokenStore) -> Neighbors:
        """Return the neighbors of every chunk of a text, which are found first if they have not been."""
        fingerprint = queries.artifact.fingerprint
        if fingerprint not in self._neighbors:
            self._neighbors[fingerprint] = self._find(queries)
        return self._neighbors[fingerprint]

    def retrieved_by(self, queries: TokenStore, values: Value) -> Retrieved:
        """Return the neighbors of the chunks of a text as tokens, of which `values` says what a model reads."""
        return Retrieved(self.source_of(queries), self.neighbors_of(queries).ids, values, reveals=self.reveals)

    def overlaps_of(self, queries: TokenStore) -> Overlaps:
        """Compare every chunk of a text with its nearest neighbors (Borgeaud et al. 2022, Sec. 2.6).

        Neighbors are found first if they have not been.
        """
        fingerprint = queries.artifact.fingerprint
        if fingerprint not in self._overlaps:
            stage = OverlapsStage(queries, self.source_of(queries), self.neighbors_of(queries))
            self._overlaps[fingerprint] = Overlaps(self._artifacts.build(stage))
        return self._overlaps[fingerprint]
