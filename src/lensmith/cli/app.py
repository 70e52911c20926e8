"""The command `lensmith`: what DVC's own commands do not do.

Each file of this folder holds the commands of one subject. Heavy imports are inside the commands, so that each starts
at once.
"""

import sys
from typing import Annotated

import typer

import lensmith
from lensmith.cli import (
    cache,
    check,
    diff,
    doctor,
    experiments,
    fleet,
    lenses,
    models,
    read,
    releases,
    report,
    verify,
    watch,
)
from lensmith.process import command
from lensmith.process.errors import InputError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
for subject in (models, check, report, lenses, experiments, watch, read, diff, verify, releases, doctor):
    app.add_typer(subject.app)
app.add_typer(cache.app, name="cache")
app.add_typer(fleet.app, name="fleet")


def print_version(asked: bool) -> None:
    """The option --version: it ends the command before another part of it is read."""
    if asked:
        typer.echo(f"lensmith {lensmith.__version__}")
        raise typer.Exit


@app.callback()
def main(
    *,
    _: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Declarative tuned lenses. `dvc repro` builds them; these commands look after them."""


def run() -> None:
    """The entry point of the command line; a wrong argument is an error like all others, one line."""

    def answer() -> None:
        try:
            app(standalone_mode=False)
        except SystemExit as ended:
            if isinstance(ended.__context__, BrokenPipeError):  # typer and rich end with 1, as if it were a bug
                raise ended.__context__ from None
            raise
        except typer.Abort:
            raise InputError("stopped: standard input ended. Nothing was changed.") from None
        except typer.TyperException as error:
            message, context = error.format_message(), getattr(error, "ctx", None)
            if not message:  # no arguments at all: the help was printed
                sys.exit(InputError.exit_code)
            name = context.command_path if context else "lensmith"
            raise InputError(f"{name}: {message.rstrip('.')}. `{name} --help` lists what there is.") from None

    command.run(answer)
