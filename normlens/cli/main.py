"""The entry point: parse, call the command, turn what it raises into one paragraph and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from normlens import __version__
from normlens.catalog import UnknownNameError
from normlens.cli import doctor, errors, export, listing, report, show, train
from normlens.run.errors import RunError, RunExistsError

__all__ = ["entry", "main"]

_COMMANDS = (train, report, show, export, listing, doctor)
_EPILOG = (
    "exit codes: 0 ok, 1 failure, 2 usage, 3 run not found or unreadable, 4 unsupported model or probe, "
    "130 interrupted. NORMLENS_DEBUG=1 shows tracebacks."
)


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    root = argparse.ArgumentParser(
        prog="normlens",
        description="What is normalization doing to my training, and what is wrong with this run?",
        epilog=_EPILOG,
    )
    root.add_argument("--version", action="version", version=f"normlens {__version__}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(commands)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(arguments)
    try:
        return int(options.execute(options))
    except KeyboardInterrupt as interrupt:
        return _say("interrupted", interrupt, errors.INTERRUPTED)
    except (UnknownNameError, errors.UsageError) as error:
        return _say("usage", error, errors.USAGE)
    except RunExistsError as error:
        return _say("a run is in the way", error, errors.FAILURE)
    except RunError as error:
        return _say("no readable run", error, errors.NO_RUN)
    except errors.UnsupportedError as error:
        return _say("unsupported", error, errors.UNSUPPORTED)
    except BrokenPipeError:
        sys.stderr.close()  # `normlens show | head`: the reader has seen enough
        return errors.OK
    except Exception as error:
        return _say(type(error).__name__, error, errors.FAILURE)


def entry() -> None:
    """Run as the program ``normlens``."""
    sys.exit(main())


def _say(what: str, error: BaseException, code: int) -> int:
    if os.environ.get("NORMLENS_DEBUG", "") not in ("", "0"):
        raise error
    print(f"normlens: {what}{': ' if str(error) else ''}{error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    entry()
