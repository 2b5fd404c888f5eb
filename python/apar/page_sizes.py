"""Tokens per KV page. Apart from the cache, since a line of help must not import torch."""

PAGE_SIZES = (8, 16, 32, 64, 128)
DEFAULT_PAGE_SIZE = 16
