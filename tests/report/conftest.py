"""Records and folders as a training leaves them."""

from record_fixtures import add_cell, baseline, longer, retro, run_folder, sweep_folder

__all__ = ["add_cell", "baseline", "longer", "retro", "run_folder", "sweep_folder"]
