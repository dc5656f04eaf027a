"""Trained models as `transformers` knows models. This package alone imports neither torch nor transformers."""
