"""Small random models of every supported family, in fp32, with odd sizes wherever a family allows one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 97
WINDOW = 7

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _llama() -> PreTrainedModel:
    # 6 heads on 2 KV heads of 32: head_dim is not hidden_size / heads, the group size no power of two.
    return LlamaForCausalLM(LlamaConfig(**_COMMON | {"hidden_size": 96, "num_attention_heads": 6, "head_dim": 32}))


def _qwen2() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**_COMMON | {"num_attention_heads": 2, "num_key_value_heads": 1}))


def _qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**_COMMON | {"head_dim": 64}))


def _mistral() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**_COMMON | {"head_dim": 32, "sliding_window": WINDOW}))


def _gemma2() -> PreTrainedModel:
    return Gemma2ForCausalLM(
        Gemma2Config(
            **_COMMON
            | {
                "head_dim": 256,
                "query_pre_attn_scalar": 100,
                "sliding_window": WINDOW,
                "attn_logit_softcapping": 5.0,
                "final_logit_softcapping": 10.0,
                "layer_types": ["sliding_attention", "full_attention"],
            }
        )
    )


def _gpt_oss() -> PreTrainedModel:
    return GptOssForCausalLM(
        GptOssConfig(
            **_COMMON
            | {
                "head_dim": 32,
                "max_position_embeddings": 131072,  # what its default rotary scaling is made for
                "sliding_window": WINDOW,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "layer_types": ["sliding_attention", "full_attention"],
            }
        )
    )


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "mistral": _mistral,
    "gemma2": _gemma2,
    "gpt_oss": _gpt_oss,
}


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A model with `attn_implementation="apar"`, in eval mode."""
    torch.manual_seed(seed)
    model = FAMILIES[family]().eval()
    model.set_attn_implementation("apar")
    return model


def reference_implementation(family: str) -> str:
    """What transformers itself can run this family with: soft caps and sinks need eager."""
    return "eager" if family in ("gemma2", "gpt_oss") else "sdpa"
