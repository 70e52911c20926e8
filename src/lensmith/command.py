"""What every command of the lab shares: paths as arguments, and an error as one line with its exit code."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from lensmith.errors import LINE, LensmithError, shown


def paths(description: str | None, *names: str) -> argparse.Namespace:
    """Parse `--name PATH` for each name, all required; dvc.yaml is where the paths are written."""
    cli = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in names:
        cli.add_argument(f"--{name}", type=Path, required=True)
    return cli.parse_args()


def run(main: Callable[[], None]) -> None:
    """Run a command's `main`; a LensmithError becomes one line on stderr and its exit code."""
    try:
        main()
    except LensmithError as error:
        print(f"error: {shown(error, LINE)}", file=sys.stderr)
        sys.exit(error.exit_code)
