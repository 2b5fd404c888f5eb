"""What the default model's training starts from: a tokenizer, and a small Llama some of whose heads copy already.

    python bench/train/default/start.py build/default-model/start

Copying is most of the task, and a small model finds out late how to copy: two heads have to agree, one that looks at
the token before, and one that looks for a place where the same token stood. So these heads are wired by hand, roughly,
and training does the rest.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
from collections.abc import Iterator

import torch
from apar.data.synth import synth_records, topics, wordings, words
from apar.data.synth.tokenizer import train_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 2048
HIDDEN, LAYERS, HEADS, INTERMEDIATE = 192, 5, 6, 512
HEAD_DIM = HIDDEN // HEADS
# With a base this large two thirds of a head's pairs turn so slowly that they compare contents at any distance.
ROPE_THETA = 1e7
WEIGHT = 0.05
"""Standard deviation of the weights that are not wired."""

PREVIOUS_TOKEN = (0, 0)
"""Layer and head that looks at the token before and writes what it was."""
TOKEN_BEFORE_THAT = (0, 1)
COPYING = ((1, 0), (1, 1), (2, 0), (2, 1), (2, 2))
"""Layers and heads that look for the token behind the same token, and write it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", help="folder to make")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tokenizer = train_tokenizer(texts(options.seed), VOCABULARY)
    tokenizer.save_pretrained(options.output)
    model = small_llama(tokenizer, options.seed)
    wire(model, options.seed)
    model.save_pretrained(options.output)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters / 1e6:.2f}M parameters, {len(tokenizer)} tokens, in {options.output}")


def texts(seed: int) -> Iterator[str]:
    """Prompts and answers, and all words of the generator often enough to become tokens of their own."""
    for record in itertools.islice(synth_records(seed), 12_000):
        yield f"{record.messages[-1]['content']}\n{record.tree.text}"
    known = " ".join([*words.ALL, *_texts_in([vars(wordings), topics.TOPICS])])
    known = " ".join(sorted(set(re.findall(r"[A-Za-z]+", re.sub(r"\{\w*\}", " ", known)))))
    yield from itertools.repeat(f" {known}", 60)


def _texts_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _texts_in(part)
    elif isinstance(value, dict):
        for name, part in value.items():
            if not str(name).startswith("__"):
                yield from _texts_in(part)
    elif isinstance(value, (topics.Topic, topics.Attribute)):
        yield from _texts_in(vars(value))


def small_llama(tokenizer, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        intermediate_size=INTERMEDIATE,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        initializer_range=WEIGHT,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model


@torch.no_grad()
def wire(model: LlamaForCausalLM, seed: int) -> None:
    """Let some heads copy. Every embedding gets a part that is common to all, from which heads can make constants."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    layers = [layer.self_attn for layer in model.model.layers]
    common = torch.sign(normal(HIDDEN))
    model.model.embed_tokens.weight.copy_(WEIGHT * normal(VOCABULARY, HIDDEN) + WEIGHT * common)
    read_common = common / (HIDDEN * math.sqrt(0.5))  # gives 1 for any normed embedding

    turns = ROPE_THETA ** (-torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
    for (layer, head), distance in ((PREVIOUS_TOKEN, 1), (TOKEN_BEFORE_THAT, 2)):
        # The product of such a query and key is largest where the key stands ``distance`` tokens before the query.
        key = torch.cat([8.0 * (turns > 0.1), torch.zeros(HEAD_DIM // 2)])
        query = torch.cat(
            [key[: HEAD_DIM // 2] * torch.cos(turns * distance), -key[: HEAD_DIM // 2] * torch.sin(turns * distance)]
        )
        layers[layer].q_proj.weight[_rows(head)] = torch.outer(query, read_common)
        layers[layer].k_proj.weight[_rows(head)] = torch.outer(key, read_common)

    # What the token before was: a projection of its embedding, written into directions of its own.
    own = torch.linalg.qr(torch.cat([common[:, None], normal(HIDDEN, HEAD_DIM)], 1))[0][:, 1:]
    projection = normal(HEAD_DIM, HIDDEN) / math.sqrt(HIDDEN)
    projection -= torch.outer(projection @ common, common) / HIDDEN
    layer, head = PREVIOUS_TOKEN
    layers[layer].v_proj.weight[_rows(head)] = 1.4 * projection
    layers[layer].o_proj.weight[:, _rows(head)] = 0.15 * own

    slow = (turns < 0.01).float().repeat(2)[:, None]
    written = torch.linalg.qr(normal(HIDDEN, HIDDEN))[0]
    for number, (layer, head) in enumerate(COPYING):
        layers[layer].q_proj.weight[_rows(head)] = 4.2 * slow * projection
        layers[layer].k_proj.weight[_rows(head)] = 3.0 * slow * own.T
        layers[layer].v_proj.weight[_rows(head)] = written[_rows(number)]
        layers[layer].o_proj.weight[:, _rows(head)] = written[_rows(number)].T


def _rows(head: int) -> slice:
    return slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)


if __name__ == "__main__":
    main()
