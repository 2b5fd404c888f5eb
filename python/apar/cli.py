"""The command line. Every command is a module of its own, loaded when it is asked for; none imports torch before its
arguments are known to be good.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

# Name: (module with `add_parser(commands)`, the line that `apar --help` shows).
COMMANDS = {
    "generate": ("apar.commands.generate", "answer prompts with a model"),
    "demo": ("apar.commands.demo", "decode a prompt with the model that comes with apar, live and timed"),
    "replay": ("apar.commands.replay", "decode trees of given shapes and report what parallel branches save"),
    "data": ("apar.data.cli", "make paragraph trees from chat data, and look at them"),
    "train": ("apar.commands.train", "tune a model on paragraph trees, or train a new one"),
    "eval": ("apar.commands.eval", "answer a prompt set in parallel and one branch at a time, and compare"),
    "info": ("apar.commands.info", "version, torch, CPU features, devices"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0, 1 after an error, 2 on a wrong command line, 130 after Ctrl-C, 141 if
    whoever reads the output went away, as the shell has it for these signals.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if sys.stdout is None:  # the command was started with its output closed
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (as long as the process lives)
    try:
        options = _parser(arguments).parse_args(arguments)
        status = options.command(options)
        sys.stdout.flush()  # here a full disk is still an error that can be told
        return status
    except BrokenPipeError:
        _let_go_of_output()
        return 141
    except (ValueError, TypeError, OSError, ArithmeticError, MemoryError, RuntimeError, ImportError) as error:
        print(f"apar: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("apar: interrupted", file=sys.stderr)
        return 130


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Of the command that is asked for the whole parser, of the others the line in the help."""
    parser = argparse.ArgumentParser(
        prog="apar",
        description="Tree decoding on top of transformers: models that write the parts of an answer in parallel.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (module, line) in COMMANDS.items():
        if arguments and arguments[0] == name:
            importlib.import_module(module).add_parser(commands)
        else:
            commands.add_parser(name, help=line)
    return parser


def _let_go_of_output() -> None:
    """Python flushes what is left at its end, and would complain about the closed pipe once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
