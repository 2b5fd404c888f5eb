"""apar: language models that write the parts of an answer in parallel.

    model, tokenizer = apar.load("path/of/a/model")
    [output] = apar.generate(model, tokenizer, "Give three tips for a good night's sleep.")
    print(output.text)

Importing the package makes `attn_implementation="apar"` known to transformers.
"""

from apar_ext.version import __version__

from .attention import register
from .cache import PagedCache, Step, UnsupportedModelError
from .events import Ended, Event, Finished, Forked, Started, Token
from .generate import generate, stream
from .grammar import Grammar
from .hook import custom_generate
from .loading import load
from .output import Branch, Output, Stats
from .replay import ReplayReport, ReplayStats, read_trees, replay
from .tree import ParagraphTree

register()

__all__ = [
    "Branch",
    "Ended",
    "Event",
    "Finished",
    "Forked",
    "Grammar",
    "Output",
    "PagedCache",
    "ParagraphTree",
    "ReplayReport",
    "ReplayStats",
    "Started",
    "Stats",
    "Step",
    "Token",
    "UnsupportedModelError",
    "__version__",
    "custom_generate",
    "generate",
    "load",
    "read_trees",
    "replay",
    "stream",
]
