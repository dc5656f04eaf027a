"""Small exported models, and records as a training leaves them."""

from record_fixtures import baseline, retro
from tiny_exports import exported, exported_retrofit

__all__ = ["baseline", "exported", "exported_retrofit", "retro"]
