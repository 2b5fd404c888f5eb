"""A model for shapes and costs where no trained one is at hand."""

from __future__ import annotations

from typing import Any

import torch

from apar.attention import register
from apar.cache import ATTENTION_NAME


def random_llama(
    *,
    hidden_size: int = 384,
    layers: int = 6,
    heads: int = 6,
    kv_heads: int | None = None,
    intermediate_size: int | None = None,
    vocabulary: int = 16000,
    positions: int = 4096,
    tie_embeddings: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Any:
    """A Llama with random weights and the attention of this package, in eval mode on the CPU.

    Args:
        hidden_size, layers, heads, kv_heads, intermediate_size: kv_heads None: as many as heads; intermediate_size
            None: 8/3 of hidden_size, rounded down to a multiple of 64.
        vocabulary, positions: tokens that it knows, and positions that it has.
        tie_embeddings: the head is the embedding.
        dtype: of the weights.
        seed: of the weights; torch's own generator is left as it is.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    register()
    config = LlamaConfig(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        intermediate_size=intermediate_size or hidden_size * 8 // 3 // 64 * 64,
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        tie_word_embeddings=tie_embeddings,
        attn_implementation=ATTENTION_NAME,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(dtype).eval()
