"""Whether this process is the command line, which starts at once because it imports what its command needs and no more.

Importing torch and transformers takes seconds; the help, wrong arguments and `apar data` need neither.
"""

from __future__ import annotations

import sys
from pathlib import Path


def is_command_line() -> bool:
    """True in `apar ...` as pip installs it, and in `python -m apar ...`. False in doubt, which only costs time."""
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":  # so it says while Python looks for the module that it is to run, and imports its packages
        given = sys.orig_argv
        return given[given.index("-m") + 1 :][:1] == ["apar"] if "-m" in given else False
    return Path(program).parts[-2:] == ("bin", "apar")
