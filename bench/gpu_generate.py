"""What does a step of plain transformers generation cost on a GPU?  python -m bench.gpu_generate

The model of bench/gpu_decode.py, attention by SDPA: with a static cache and the compiled, captured step that `generate`
makes of it, and with the dynamic cache. Milliseconds a token are the difference between a long and a short answer, so
that compiling and prefill are left out. The baseline of the decode step; it decodes one branch.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from bench.gpu import Card, add_options, read_ceiling
from bench.gpu_decode import PROMPT_TOKENS, llama, read_weight_bytes


def ms_per_token(model: Any, card: Card, cache: str | None) -> float:
    short, long = (3, 6) if card.is_dry_run else (32, 160)
    prompt = torch.full((1, PROMPT_TOKENS), 5, device=card.device)

    def seconds(tokens: int) -> float:
        options = {} if cache is None else {"cache_implementation": cache}
        if not card.is_dry_run:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        out = model.generate(
            prompt,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            disable_compile=card.is_dry_run,
            **options,
        )
        if not card.is_dry_run:
            torch.cuda.synchronize()
        if out.shape[1] != PROMPT_TOKENS + tokens:
            raise RuntimeError(f"{out.shape[1] - PROMPT_TOKENS} tokens were written, expected {tokens}")
        return time.perf_counter() - begin

    for tokens in (short, long):  # compiles
        seconds(tokens)
    best = [min(seconds(tokens) for _ in range(3)) for tokens in (short, long)]
    return 1e3 * (best[1] - best[0]) / (long - short)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    card = Card(parser.parse_args())
    ceiling = read_ceiling(card)["memory"]
    model = llama(card)
    model.set_attn_implementation("sdpa")
    floor_ms = 1e3 * read_weight_bytes(model) / ceiling
    results: dict[str, Any] = {"read_bytes_per_second": ceiling, "floor_ms": floor_ms, "generate": [], "failed": {}}
    for name, cache in (("sdpa, dynamic cache", None), ("sdpa, static cache, compiled", "static")):
        try:
            ms = ms_per_token(model, card, cache)
        except Exception as failure:  # whatever a peer throws is its reason
            results["failed"][name] = (str(failure).strip() or type(failure).__name__).splitlines()[0][:300]
            print(f"{name}: {results['failed'][name]}", flush=True)
        else:
            results["generate"].append({"name": name, "ms": ms, "of_floor": ms / floor_ms})
            print(f"{name}: {ms:.3f} ms a token, {ms / floor_ms:.2f} x reading the weights", flush=True)
        card.write("generate", results)


if __name__ == "__main__":
    main()
