"""The open laboratory for retrieval-enhanced language models (RETRO, Borgeaud et al. 2022)."""
