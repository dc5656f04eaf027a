"""How held-out text is scored: the `evaluation` group."""

from dataclasses import dataclass, field

from retro_lab.errors import ConfigurationError
from retro_lab.ranges import NOT_NEGATIVE, POSITIVE, SEED, SHARE, WEIGHT, check_ranges
from retro_lab.retrieval.config import FilterConfig, Unit


@dataclass(kw_only=True)
class KnnLmConfig:
    """kNN-LM over the baseline, with RETRO's database (Khandelwal et al. 2020; Borgeaud et al. 2022, Sec. 4.1)."""

    k: int = 0
    """Neighbors of each token; the paper takes 10. 0 leaves kNN-LM out."""
    interpolation: float | None = None
    """Weight lambda of the neighbors' distribution in p = lambda p_kNN + (1 - lambda) p_LM; null tunes it on the
    validation split."""
    alpha: float | None = None
    """How fast the weight of a neighbor, exp(-alpha d), falls with its squared L2 distance d; null starts at the
    inverse of the standard deviation of the squared norms of the states, and tunes it on the validation split after the
    interpolation, as the paper does (App. C.2)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges("evaluation.knn_lm", self, k=NOT_NEGATIVE, interpolation=WEIGHT, alpha=POSITIVE)


@dataclass(kw_only=True)
class EvaluationConfig:
    """Bits per byte on whole documents with sliding windows (Borgeaud et al. 2022, Sec. 4)."""

    datasets: list[str] = field(default_factory=lambda: ["test"])
    """Texts to score: `test` and `validation`, the held-out splits of the corpus, and the test split of other corpora
    (options of `corpus`, or names in `corpora`). Sweep tables and most figures show the scores of the first. Choose
    settings on `validation`, and report `test`."""
    k: list[int] = field(default_factory=lambda: [0])
    """Values of k to evaluate a RETRO with, besides the one it was trained with; 0 is RETRO[Off]."""
    databases: list[str] = field(default_factory=list)
    """Other corpora whose training splits a RETRO also retrieves from in scoring: options of `corpus`, or names in
    `corpora`. `database.fraction` and `database.tokens` hold for each. This and the four lists below add scores with
    the k of training on each of `datasets`, and train nothing."""
    fractions: list[float] = field(default_factory=list)
    """Shares of the database to retrieve from in scoring: its first documents, found by an exact search of them alone.
    Shares that `database.fractions` has too need no new search."""
    keep: list[float] = field(default_factory=list)
    """Shares of random databases to retrieve from in scoring: each keeps a chunk of the database with this probability,
    and costs no search, as the others are dropped from the `retrieval.stored` nearest."""
    keep_seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    """Seeds of the random databases, each of which draws one of every share in `keep`."""
    keep_unit: Unit = Unit.chunk
    """What a random database keeps or leaves out: a `chunk`, whose continuation stays as it is, or a `document`."""
    filters: dict[str, FilterConfig] = field(default_factory=dict)
    """Filters by name, such as `'+evaluation.filters={new: {jaccard: 0.8}}'`, each of which gives scores without the
    stored neighbors that it drops. A neighbor, with its
    continuation, is dropped if any of its settings says so: `longest_overlap: n` if n tokens or more stand in one run
    in the chunk and the one that follows it; `jaccard: t` if its 13-grams of tokens have a Jaccard similarity of t or
    more to theirs; `other_documents: true` if its document has the id or the group of the chunk's own, which another
    corpus can hold too; `near_copies: t` if they are so similar to those of a nearer neighbor."""
    stride: int = 1024
    """Tokens by which the window moves. Each token is scored once. Beyond a document's first window, a token has at
    least `data.sequence_length` - `stride` tokens of context."""
    batch_size: int = 8
    """Windows scored at once."""
    curve_points: int = 10
    """Number of evaluations during training, evenly spaced in tokens; the last is at the end."""
    curve_tokens: float = 100_000
    """Held-out tokens scored in each of these evaluations; final scores use all held-out tokens."""
    knn_lm: KnnLmConfig = field(default_factory=KnnLmConfig)
    """kNN-LM, scored on the same texts."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigurationError: A number is out of its range, no seed is left for random databases, or a filter drops
                nothing.
        """
        check_ranges(
            "evaluation",
            self,
            k=NOT_NEGATIVE,
            fractions=SHARE,
            keep=SHARE,
            keep_seeds=SEED,
            stride=POSITIVE,
            batch_size=POSITIVE,
            curve_points=NOT_NEGATIVE,
            curve_tokens=POSITIVE,
        )
        if self.keep and not self.keep_seeds:
            raise ConfigurationError(
                "evaluation.keep draws random databases and needs a seed in evaluation.keep_seeds."
            )
        for name, chosen in self.filters.items():
            if not chosen.drops:
                raise ConfigurationError(
                    f"evaluation.filters.{name} drops no neighbor; set its longest_overlap, jaccard, "
                    "other_documents or near_copies."
                )


def stride_of(overlap: float | None, stride: int, chunk_length: int, length: int) -> int:
    """Return the tokens by which windows of `length` tokens move on a text.

    Args:
        overlap: Share of a window that is in the one before as well; None if the text has no wish.
        stride: Of a text that has none.
        chunk_length: Windows move by whole chunks, and at least by one: the overlap is rounded up, or else is the
            largest there is.
        length: Of a window.
    """
    if overlap is None:
        return stride
    chunks = int(round(length * (1 - overlap) / chunk_length, 6))
    return min(length, max(1, chunks) * chunk_length)


def check_stride(stride: int, chunk_length: int, length: int) -> None:
    """Check that windows of `length` tokens, `stride` tokens apart, start on chunks and leave no gaps.

    Raises:
        ConfigurationError: The stride is not a multiple of the chunk length, or exceeds `length`.
    """
    if stride % chunk_length or not 0 < stride <= length:
        raise ConfigurationError(
            f"evaluation.stride={stride} must be a multiple of model.chunk_length={chunk_length} and at most "
            f"data.sequence_length={length}."
        )
