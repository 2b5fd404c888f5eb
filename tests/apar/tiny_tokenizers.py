"""Tokenizers made on the spot, of the two kinds that models have."""

from __future__ import annotations

import functools
import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LINES = [
    "1. Sleep: go to bed at the same time every day, and keep the room dark.",
    "2. Food: eat slowly; drink water. Größe, naïve, 東京, 🙂🙃 and other things.",
    "The quick brown fox jumps over the lazy dog while the cat looks on.",
]
CONTROL = ["[Fork]", "[Child]"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@functools.cache
def byte_level_tokenizer(control: tuple[str, ...] = tuple(CONTROL), chat: bool = False) -> PreTrainedTokenizerFast:
    """As GPT-2, Qwen and Llama 3 have them: bytes, so that a token may be a part of a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        show_progress=False,
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return _finish(tokenizer, control, chat)


@functools.cache
def sentencepiece_tokenizer(control: tuple[str, ...] = tuple(CONTROL), chat: bool = False) -> PreTrainedTokenizerFast:
    """As Llama 2 and Vicuna have them: a space belongs to the word behind it, and the first word shows none."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        show_progress=False,
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
    )
    tokenizer.train_from_iterator([line.replace("東京", "").replace(" ", "▁") for line in LINES], trainer)
    # Tokens of bytes are ordinary tokens; the trainer alone had to be told that they are special.
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = description["added_tokens"][:3]
    return _finish(Tokenizer.from_str(json.dumps(description)), control, chat)


def _finish(tokenizer: Tokenizer, control: tuple[str, ...], chat: bool) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    if control:
        fast.add_special_tokens({"additional_special_tokens": list(control)})
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast
