"""apar: language models that write the parts of an answer in parallel.

    model, tokenizer = apar.load("path/of/a/model")
    [output] = apar.generate(model, tokenizer, "Give three tips for a good night's sleep.")
    print(output.text)

Importing the package makes `attn_implementation="apar"` known to transformers. In the command line alone it imports
nothing: commands take what they need from the modules.
"""

from typing import TYPE_CHECKING

from apar.startup import is_command_line

if TYPE_CHECKING or not is_command_line():
    from apar.attention import register
    from apar.cache import PagedCache, Step, UnsupportedModelError
    from apar.events import Ended, Event, Finished, Forked, Started, Token
    from apar.generate import generate, stream
    from apar.grammar import Grammar
    from apar.hook import custom_generate
    from apar.loading import load
    from apar.output import Branch, Output, Stats
    from apar.replay import ReplayReport, ReplayStats, replay
    from apar.shapes import read_shapes
    from apar.tree import ParagraphTree
    from apar_ext.version import __version__

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
    "read_shapes",
    "replay",
    "stream",
]
