"""Decoding language models that fork, on top of transformers."""

from apar.attention import register

register()
