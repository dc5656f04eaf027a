"""The reference implementation of RETRO (Borgeaud et al. 2022), which depends on PyTorch alone.

`retro.RetroModel` is the model; every other file holds one of its parts. Importing the package itself does not import
torch.
"""
