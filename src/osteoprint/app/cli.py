"""The command line: ``osteoprint``. Exit code 0 done, 2 bad input, 1 our fault."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from osteoprint import __version__
from osteoprint.app import (
    bank_commands,
    film_commands,
    model_commands,
    shape_commands,
    study_commands,
)
from osteoprint.app.console import say
from osteoprint.errors import InputError

# What a wrong command line raises. Newer typers carry click inside them, older ones import
# it; the class is the same place above BadParameter in both.
_USAGE_ERROR: type[Any] = next(
    c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException"
)

app = typer.Typer(
    name="osteoprint",
    help="From two X-rays of a bone: whose bone it is, and what its 3D shape is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for register in (
    bank_commands.register,
    model_commands.register,
    film_commands.register,
    shape_commands.register,
    study_commands.register,
):
    register(app)


@app.callback(invoke_without_command=True)
def options(
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
) -> None:
    """From two X-rays of a bone: whose bone it is, and what its 3D shape is."""
    if version:
        sys.stdout.write(f"osteoprint {__version__}\n")
        raise typer.Exit


def run(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code; errors become one line on standard error."""
    try:
        result = app(args=arguments, prog_name="osteoprint", standalone_mode=False)
        return int(result) if isinstance(result, int) else 0
    except InputError as error:
        say(f"osteoprint: {error}")
        return 2
    except _USAGE_ERROR as error:
        message = " ".join(error.format_message().split())
        if message:  # without a command there is only the help, which has been printed
            say(f"osteoprint: {message.rstrip('.')}; see --help")
        return 2
    except BrokenPipeError:
        # The reader of our output has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None or os.environ.get("OSTEOPRINT_DEBUG"):
            raise
        say(f"osteoprint: {error.filename}: {error.strerror}; check the path and its rights")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        say("osteoprint: stopped")
        return 130
    except Exception as error:
        if os.environ.get("OSTEOPRINT_DEBUG"):
            raise
        say(
            f"osteoprint: internal error: {type(error).__name__}: {' '.join(str(error).split())}; "
            "please report it, with the output under OSTEOPRINT_DEBUG=1"
        )
        return 1


def main() -> None:
    """Entry point of the ``osteoprint`` command."""
    sys.exit(run())


if __name__ == "__main__":
    main()
