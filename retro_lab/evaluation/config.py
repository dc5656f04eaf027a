"""How held-out text is scored: the `evaluation` group."""

from dataclasses import dataclass, field

from retro_lab.errors import ConfigurationError
from retro_lab.ranges import NOT_NEGATIVE, POSITIVE, WEIGHT, check_ranges


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
        """Check the ranges."""
        check_ranges(
            "evaluation",
            self,
            k=NOT_NEGATIVE,
            stride=POSITIVE,
            batch_size=POSITIVE,
            curve_points=NOT_NEGATIVE,
            curve_tokens=POSITIVE,
        )


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
