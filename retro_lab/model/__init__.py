"""The reference implementation of RETRO (Borgeaud et al. 2022), in PyTorch alone.

`retro.RetroModel` is the model; every other file holds one of its parts. Importing this package imports no torch.
"""
