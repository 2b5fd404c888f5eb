"""How well and how fast a model answers when its branches are decoded at once: ``apar eval``."""

from apar.eval.prompts import EvalPrompt, read_prompts
from apar.eval.report import EvalReport
from apar.eval.run import EvalOptions, evaluate

__all__ = ["EvalOptions", "EvalPrompt", "EvalReport", "evaluate", "read_prompts"]
