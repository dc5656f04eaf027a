"""How held-out text is scored: the `evaluation` group."""

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class EvaluationConfig:
    """Bits per byte on whole documents with sliding windows (Borgeaud et al. 2022, Sec. 4)."""

    neighbors: list[int] = field(default_factory=lambda: [0])
    """Values of k to evaluate a RETRO with besides the one it was trained with; 0 is RETRO[Off]."""
    stride: int = 1024
    """Tokens by which the window moves; each token is scored once, with at least length - stride tokens before it."""
    batch_size: int = 8
    """Windows scored at once."""
    curve_points: int = 10
    """Evaluations during training, evenly spaced in tokens, the last at the end."""
    curve_tokens: float = 100_000
    """Held-out tokens scored at each of those; the final figures use all of them."""
