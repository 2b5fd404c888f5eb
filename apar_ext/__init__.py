"""Attention over branches that share prefixes, and the bookkeeping of branches, as torch operators.

Operators are registered as ``torch.ops.apar.*``; the functions here are their typed and documented doors.
"""

import torch  # noqa: F401  (the extension needs torch's libraries in the process)

from apar_ext import _C  # noqa: F401  (registers the operators)
from apar_ext.attention import Plan, make_plan, schedule_size, tree_attention
from apar_ext.build_info import build_info
from apar_ext.device import raise_device_error
from apar_ext.forest import (
    FOREST_MAX_STOP_TOKENS,
    advance,
    forest_admit,
    forest_cancel,
    forest_close_shared,
    forest_header,
    forest_join,
    forest_layout,
    forest_open_shared,
    forest_reset,
    forest_schedule,
    step_plan_size,
    window_begins,
    write_step_plans,
)
from apar_ext.kv import append_kv
from apar_ext.logits import draw_numbers, greedy_tokens, mask_logits_, sample_tokens
from apar_ext.version import __version__

__all__ = [
    "FOREST_MAX_STOP_TOKENS",
    "Plan",
    "__version__",
    "advance",
    "append_kv",
    "build_info",
    "draw_numbers",
    "forest_admit",
    "forest_cancel",
    "forest_close_shared",
    "forest_header",
    "forest_join",
    "forest_layout",
    "forest_open_shared",
    "forest_reset",
    "forest_schedule",
    "greedy_tokens",
    "make_plan",
    "mask_logits_",
    "raise_device_error",
    "sample_tokens",
    "schedule_size",
    "step_plan_size",
    "tree_attention",
    "window_begins",
    "write_step_plans",
]
