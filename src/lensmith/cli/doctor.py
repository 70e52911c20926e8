"""`lensmith doctor`: what is wrong with this lab and its machine, and with --rehash whether every byte is right."""

from pathlib import Path
from typing import Annotated

import typer

from lensmith.process import amounts
from lensmith.process.errors import InputError, IntegrityError

app = typer.Typer()


@app.command()
def doctor(
    *,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended without losing anything.")] = False,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Also hash every file of DVC's cache and of the outputs again.")
    ] = False,
    subset: Annotated[str | None, typer.Option(help="With --rehash: 1/7 hashes a seventh of them.")] = None,
) -> None:
    """Say what is wrong with this lab and this machine, why it matters, and what to do.

    --rehash compares every file of DVC's cache with its name and its seal, and every output with dvc.lock.
    It moves a damaged file of the cache to .lensmith/quarantine; each line says how to restore it.
    """
    if subset is not None and not rehash:
        raise InputError("--subset chooses a part for --rehash, which is missing. Nothing was read.")
    from lensmith.lab import doctor as checks

    n_left = 0
    for finding in checks.examine(Path()):
        if fix and finding.mend is not None:
            finding.mend()
            typer.echo(f"mended: {finding.what}: {finding.why}.")
        else:
            n_left += 1
            typer.echo(f"{finding}.")
    typer.echo(f"{amounts.many(n_left, 'thing')} to do" if n_left else "nothing to do")
    if rehash:
        from lensmith.lab import rehash as hashes

        result = hashes.run(Path(), subset or "1/1")
        for line in result.faults:
            typer.echo(f"error: {line}", err=True)
        typer.echo(result.summary)
        if result.faults:
            raise IntegrityError(
                f"files that are not what was recorded: {len(result.faults)}. Each line above says what to do."
            )
    if n_left:
        raise InputError("the lab is not as it should be; each line above says what to do. Nothing else was changed.")
