"""Tests of retro_lab.report and of the commands that print reports."""
