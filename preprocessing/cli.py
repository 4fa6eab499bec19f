"""Runs a stage as a command: `python -m preprocessing <stage> ...`.

A stage module offers `add_arguments(parser)` and `command(args) -> str`, the string being the one
line printed on success. Only the module of the stage that runs is imported, so that a
preprocessing job does not wait for torch.
"""

import argparse
import importlib
import os
import sys

from preprocessing.errors import InputError
from preprocessing.say import say
from preprocessing.untrusted import printable

NOTHING_FOR_OTHERS = 0o007  # a umask


def run_command(package: str, commands: dict[str, str], argv: list[str] | None = None) -> int:
    """Parse `argv`, run the stage it names and return the exit code (0, 1 failed, 2 wrong use).

    What a stage writes of patients is closed to all but the user and, where the umask lets it, the
    group.
    """
    os.umask(os.umask(NOTHING_FOR_OTHERS) | NOTHING_FOR_OTHERS)
    argv = sys.argv[1:] if argv is None else argv
    overview = argparse.ArgumentParser(
        prog=f"python -m {package}",
        description="Each command is one stage of the pipeline; `COMMAND --help` explains it.",
        epilog="\n".join(f"  {name:<12} {text}" for name, text in commands.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    overview.add_argument("command", choices=commands, metavar="COMMAND")
    name = overview.parse_args(argv[:1]).command

    stage = importlib.import_module(f"{package}.{name}")
    parser = argparse.ArgumentParser(
        prog=f"python -m {package} {name}",
        description=commands[name],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    stage.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv[1:])
    try:
        summary = stage.command(args)
        if summary:  # of several processes of one command, one speaks
            say(printable(summary), sys.stdout)
    except Exception as error:
        if args.debug:
            raise
        say(f"error: {package} {name}: {_one_line(error)}", sys.stderr)
        return 1
    return 0


def _one_line(error: Exception) -> str:
    text = " ".join(printable(str(error)).split()) or type(error).__name__
    if isinstance(error, InputError | OSError):
        return text
    if isinstance(error, MemoryError):
        return f"out of memory ({text}); give the job more memory or make the batch smaller"
    return f"unexpected {type(error).__name__}: {text}; run the command again with --debug"
