"""Small exported models, and records as a training leaves them."""

from record_fixtures import baseline, retro
from tiny_exports import exported

__all__ = ["baseline", "exported", "retro"]
