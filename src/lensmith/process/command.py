"""What all commands share: paths as arguments, errors as one line with an exit code, stages without a network."""

import argparse
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from lensmith.process import credentials, offline, stopping
from lensmith.process.errors import LINE, InputError, LensmithError, shown


def paths(description: str | None, *names: str) -> argparse.Namespace:
    """Parse `--name PATH` for each name, all required; dvc.yaml is where the paths are written."""
    cli = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in names:
        cli.add_argument(f"--{name}", type=Path, required=True)
    return cli.parse_args()


def part(option: str, text: str, untouched: str) -> tuple[int, int]:
    """An option's value I/N, the I-th of N parts. InputError, ending in `untouched`, where it is none."""
    i, _, n = text.partition("/")
    if i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n):
        return int(i), int(n)
    raise InputError(f"{option} is {text!r}, must be I/N with 1 <= I <= N, such as 1/4. {untouched}")


def run_stage(main: Callable[[], None], *, network: bool = False) -> None:
    """Run a stage of dvc.yaml; without `network` it has no connections and no credentials.

    `main` imports what it needs: libraries of the Hub read their settings when they are imported, so the network is
    denied first.
    """
    if not network:
        offline.enter()
    run(main)


def run(main: Callable[[], None]) -> None:
    """Run a command's `main`; a LensmithError or a signal becomes one line on stderr and its exit code.

    Credentials are removed from everything that is printed.
    """
    try:
        stopping.install()
        main()
    except (LensmithError, stopping.Interrupted) as error:
        print(credentials.redact(f"error: {shown(error, LINE)}"), file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception:  # noqa: BLE001 (our own bug: as Python would print it, without secrets)
        print(credentials.redact(traceback.format_exc()), end="", file=sys.stderr)
        sys.exit(1)
