"""Trained models as `transformers` knows models. Importing this package alone imports neither torch nor transformers."""
