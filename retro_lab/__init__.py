"""The open laboratory for retrieval-enhanced language models (RETRO, Borgeaud et al. 2022).

`open_run(folder)` opens a trained run in Python; everything else is a command, `python -m retro_lab --help`.
transformers' Auto classes open what `task=export` writes, once this package is imported.
"""

from typing import TYPE_CHECKING, Any

from retro_lab.export import registration

if TYPE_CHECKING:
    from retro_lab.library import open_run

__all__ = ["open_run"]

registration.register()


def __getattr__(name: str) -> Any:
    """Import `open_run` once it is used: it loads torch, which most commands have no time for at their start."""
    if name == "open_run":
        from retro_lab.library import open_run

        return open_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
