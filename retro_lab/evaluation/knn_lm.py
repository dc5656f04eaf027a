"""kNN-LM over a trained baseline (Khandelwal et al. 2020; Borgeaud et al. 2022, Sec. 4.1 and App. C.2).

    p(y) = lambda p_kNN(y) + (1 - lambda) p_LM(y)    p_kNN(y) ~ sum of exp(-alpha d) over the neighbors followed by y

The datastore has an entry for every token of RETRO's database: the baseline's hidden state before it, and the token.
The k nearest states to the one before a token of the text are its neighbors, d their squared L2 distance. lambda is the
weight of the neighbors, as in Sec. 4.1; App. C.2 has it the other way around, where its 0.118 makes no sense.

Distances and the model's own cross-entropies are stored, so any lambda and alpha need neither the model nor a search.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from retro_lab import console
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.corpus.tokens import TokenStore
from retro_lab.errors import ConfigurationError
from retro_lab.evaluation.config import KnnLmConfig
from retro_lab.evaluation.hidden_states import HiddenStates, HiddenStatesStage, Reader
from retro_lab.evaluation.score import HeldOutScore, Score
from retro_lab.evaluation.token_neighbors import TokenNeighbors, TokenNeighborsStage
from retro_lab.evaluation.windows import Windows
from retro_lab.retrieval.config import IndexConfig, Metric
from retro_lab.retrieval.index import Index, IndexStage

INTERPOLATIONS = np.arange(0, 1, 0.01)
ALPHA_FACTORS = 2.0 ** np.arange(-8, 8.5, 0.5)
"""What is tried: lambda itself, and alpha as a multiple of where it starts."""
STATE_BYTES = 2


@dataclass(frozen=True)
class TokenEvidence:
    """What the probabilities of a text's tokens are made of; T tokens, k neighbors of each."""

    nats: np.ndarray
    """float [T]: the model's cross-entropy of each token."""
    distances: np.ndarray
    """float [T, k]: squared distances of the neighbors; infinite for one that is missing."""
    matches: np.ndarray
    """bool [T, k]: whether the token of the text is the one that follows the neighbor."""

    def neighbor_probability(self, alpha: float) -> np.ndarray:
        """Return p_kNN of each token, float64 [T]."""
        nearest = self.distances.min(1, keepdims=True)
        weights = np.exp(-alpha * (self.distances - nearest).astype(np.float64))
        return (weights * self.matches).sum(1) / weights.sum(1)

    def mixed_nats(self, interpolation: float, alpha: float) -> np.ndarray:
        """Return the cross-entropy of each token with lambda = `interpolation`, at least 0 and below 1; float64 [T]."""
        return _mixed(self.nats, self.neighbor_probability(alpha), interpolation)


def _mixed(nats: np.ndarray, neighbors: np.ndarray, interpolation: float) -> np.ndarray:
    with np.errstate(divide="ignore"):  # no neighbor, or no weight, is a probability of 0
        return -np.logaddexp(np.log(interpolation) + np.log(neighbors), np.log1p(-interpolation) - nats)


def tune(evidence: TokenEvidence, config: KnnLmConfig, first_alpha: float) -> tuple[float, float]:
    """Return lambda and alpha with the lowest cross-entropy, in the paper's order.

    First the best lambda with alpha = `first_alpha`, then the best alpha with this lambda. Of equally good values the
    smallest is taken; what `config` gives is kept.

    Args:
        evidence: Of the text that is tuned on.
        config: The values that are given.
        first_alpha: Where alpha starts.

    Raises:
        ConfigurationError: No alpha is given, and `first_alpha` is no positive number.
    """
    if config.alpha is None and not (np.isfinite(first_alpha) and first_alpha > 0):
        raise ConfigurationError(
            "The norms of the hidden states do not say where to begin to tune alpha, because they are all the same; "
            "set evaluation.knn_lm.alpha."
        )
    start = first_alpha if config.alpha is None else config.alpha
    interpolation = config.interpolation
    if interpolation is None:
        neighbors = evidence.neighbor_probability(start)
        levels = [_mixed(evidence.nats, neighbors, weight).sum() for weight in INTERPOLATIONS]
        interpolation = float(INTERPOLATIONS[np.argmin(levels)])
    if config.alpha is not None:
        return interpolation, config.alpha
    alphas = start * ALPHA_FACTORS
    best = int(np.argmin([evidence.mixed_nats(interpolation, alpha).sum() for alpha in alphas]))
    if interpolation and best in (0, len(alphas) - 1):
        console.status("kNN-LM", f"the best alpha, {alphas[best]:.3g}, is at the end of what was tried")
    return interpolation, float(alphas[best])


class Datastore:
    """The hidden states of a trained baseline for a database, and what is found in them."""

    def __init__(
        self,
        artifacts: ArtifactStore,
        reader: Reader,
        store: TokenStore,
        documents: int,
        validation: TokenStore,
        index: IndexConfig,
        k: int,
        seed: int,
    ) -> None:
        """Build the datastore and its index, or reuse them.

        Args:
            artifacts: Where they are kept.
            reader: The baseline.
            store: Tokens of the database.
            documents: How many of its documents are in the database.
            validation: The text that the search is tuned on, if it is not exact.
            index: Kind, recall and size of the index; its metric is L2.
            k: Neighbors to find.
            seed: Of the index's samples.

        Raises:
            ConfigurationError: k is larger than the number of tokens.
        """
        self._artifacts, self._reader, self.store, self.k = artifacts, reader, store, k
        # What was built, by the fingerprint of the text and the stride.
        self._states: dict[tuple[str, int], HiddenStates] = {}
        self._neighbors: dict[tuple[str, int], TokenNeighbors] = {}
        tokens = int((store.document_length[:documents] - 1).sum())
        if k > tokens:
            raise ConfigurationError(
                f"evaluation.knn_lm.k={k} is more than the {tokens} tokens of the database; use a smaller k or a "
                "larger corpus or database.fraction."
            )
        size = tokens * reader.width * STATE_BYTES / 1e9
        console.status("kNN-LM", f"{tokens:,} states of width {reader.width:,}: {size:,.3g} GB on disk, and an index")
        self.states = self._read(store, documents, reader.stride)
        stage = IndexStage(
            self.states,
            0,
            self.states.chunks,
            replace(index, metric=Metric.l2),
            self.states_of(validation, reader.stride),
            k,
            seed,
        )
        self.index = Index(artifacts.build(stage))

    @property
    def first_alpha(self) -> float:
        """Where the tuning of alpha begins: 1 over the standard deviation of the squared norms (App. C.2).

        The paper has it of "the norm"; as distances are squared, only squared norms give a number without a unit, and
        only they spread by as much as 1 / 0.0012 in 1,024 dimensions.
        """
        return 1 / self.states.norm_spread if self.states.norm_spread else float("inf")

    def windows(self, text: TokenStore, stride: int) -> Windows:
        """Return the windows in whose order evidence has the tokens of a text, `stride` tokens apart."""
        return replace(self._reader, stride=stride).windows(text, text.documents)

    def states_of(self, text: TokenStore, stride: int) -> HiddenStates:
        """Return the state before each token of a text."""
        key = text.artifact.fingerprint, stride
        if key not in self._states:
            self._states[key] = self._read(text, text.documents, stride)
        return self._states[key]

    def neighbors_of(self, text: TokenStore, stride: int) -> TokenNeighbors:
        """Find the neighbors of each token of a text.

        Raises:
            ValueError: The text is the database, so every token would find itself.
        """
        key = text.artifact.fingerprint, stride
        if text.artifact.fingerprint == self.store.artifact.fingerprint:
            raise ValueError("The text is the database that neighbors are taken from.")
        if key not in self._neighbors:
            stage = TokenNeighborsStage(self.states_of(text, stride), self.states, self.index, self.k)
            self._neighbors[key] = TokenNeighbors(self._artifacts.build(stage))
        return self._neighbors[key]

    def evidence_of(self, text: TokenStore, stride: int) -> TokenEvidence:
        """Return what the probabilities of a text's tokens are made of."""
        states, found = self.states_of(text, stride), self.neighbors_of(text, stride)
        return TokenEvidence(states.nats.astype(np.float64), found.distances, found.tokens == states.tokens[:, None])

    def _read(self, store: TokenStore, documents: int, stride: int) -> HiddenStates:
        reader = replace(self._reader, stride=stride)
        return HiddenStates(self._artifacts.build(HiddenStatesStage(reader, store, documents)))


def score(windows: Windows, nats: np.ndarray) -> Score:
    """Return the score of a text whose tokens take `nats`, float [T], in the order of its windows."""
    added = HeldOutScore(windows.sequences.store.chunk_length, on_all_devices=False)
    place = 0
    for number in range(len(windows)):
        batch = windows[number]
        mask = batch["batch"]["mask"]
        count = int(mask.sum())
        spread = torch.zeros(mask.shape, dtype=torch.float64)
        spread[mask] = torch.from_numpy(nats[place : place + count].astype(np.float64))
        added.update(spread, mask, batch["windows"], batch["bytes"], batch["documents"])
        place += count
    assert place == len(nats)
    return added.compute()
