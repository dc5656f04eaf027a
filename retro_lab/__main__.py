"""Runs the command line: `python -m retro_lab`."""

from retro_lab.cli import main

main()
