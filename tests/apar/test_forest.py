from __future__ import annotations

import random

from apar.forest import ForestConfig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.apar.forest_pair import CHILD, FORK, STOP, Pair, writer

quiet = dict(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def smallest(max_depth: int, longest: int, page_size: int = 8, **changes) -> ForestConfig:
    """The smallest legal pool for requests of `longest` tokens, prompt included."""
    sizes = dict(
        num_slots=max_depth,
        num_pages=-(-(longest - 1) // page_size) + max_depth - 1,
        page_size=page_size,
        fork_token=FORK,
        child_token=CHILD,
        stop_tokens=(STOP,),
        max_depth=max_depth,
    )
    return ForestConfig(**{**sizes, **changes})


@st.composite
def configs(draw) -> tuple[ForestConfig, int]:
    """(configuration, most tokens of a path): tiny pools with a little more than the least that is legal."""
    max_depth = draw(st.integers(1, 4))
    keep_finished = draw(st.booleans()) if max_depth <= 3 else False
    max_children = draw(st.integers(1, 3))
    longest = draw(st.integers(4, 60))
    own = -(-(longest - 1) // 8)
    levels = max_depth - 1
    kept = levels * max_children if keep_finished else 0
    config = ForestConfig(
        num_slots=1 + max(levels, kept) + draw(st.integers(0, 6)),
        num_pages=own + (kept * own if kept else levels) + draw(st.integers(0, 12)),
        page_size=8,
        max_pages=own + draw(st.integers(0, 2)),
        max_ranges=max_depth + (levels * max_children if keep_finished else 0),
        max_rows=draw(st.integers(1, 8)),
        fork_token=FORK,
        child_token=CHILD,
        stop_tokens=(STOP,),
        max_depth=max_depth,
        max_children=max_children,
        max_live_branches=draw(st.integers(1, 5)),
        keep_finished=keep_finished,
    )
    return config, longest


ACTIONS = ["admit", "join"] * 4 + ["step"] * 8 + ["end", "cancel", "share", "unshare", "schedule"]


def random_script(pair: Pair, longest: int, draw: random.Random, actions: int) -> None:
    """Requests come, fork, join, are cancelled; streams are shared. Then all run to the end and nothing is left."""
    next_request = 0
    shared = []
    pair.schedule()
    for _ in range(actions):
        action = draw.choice(ACTIONS)
        live = pair.model.live()
        if action == "admit":
            prompt = [draw.randrange(10, 1000) for _ in range(draw.randint(1, longest - 1))]
            stream = draw.choice([None, *shared]) if shared else None
            if stream is not None and len(stream.tokens) < len(prompt):
                prompt[: len(stream.tokens)] = stream.tokens
            else:
                stream = None
            next_request += pair.admit(next_request, prompt, draw.randint(1, longest - len(prompt)), stream)
            pair.schedule()
        elif action == "step" or action == "end":
            pair.step(end_row=draw.randrange(8) if action == "end" else -1)
        elif action == "cancel" and live:
            pair.cancel(draw.choice(live).request)
            if draw.random() < 0.5:
                pair.schedule()
        elif action == "share":
            length = draw.randint(1, min(longest, pair.config.max_pages * 8, pair.config.num_pages * 8))
            stream = pair.open_shared([draw.randrange(10, 1000) for _ in range(length)])
            shared += [stream] if stream else []
        elif action == "unshare" and shared:
            pair.close_shared(shared.pop(draw.randrange(len(shared))))
        elif action == "schedule":
            pair.schedule()
        elif action == "join" and pair.config.keep_finished and live:
            parent = draw.choice(live)
            joined = [stream for stream, _ in parent.context]
            ready = [
                stream
                for stream in pair.model.order
                if stream.parent is parent and stream.state == "finished" and stream not in joined
            ]
            if ready:
                pair.join(parent, draw.sample(ready, draw.randint(1, len(ready))))
    while shared:
        pair.close_shared(shared.pop())
    pair.run_to_the_end()
    assert pair.forest.counter("num_free_pages") == pair.config.num_pages
    assert pair.forest.counter("num_free_slots") == pair.config.num_slots


@settings(max_examples=300, **quiet)
@given(configs(), st.integers(0, 2**32))
def test_random_scripts_follow_the_model(config_and_longest, seed):
    config, longest = config_and_longest
    draw = random.Random(seed)
    write = writer(seed, fork_share=draw.choice([0.1, 0.3, 0.6]), stop_share=draw.choice([0.0, 0.05, 0.2]))
    random_script(Pair(config, write), longest, draw, actions=60)
