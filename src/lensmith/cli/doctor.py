"""`lensmith fsck`, `doctor`: whether what the lab keeps is whole, and whether its machine can use it."""

from pathlib import Path
from typing import Annotated

import typer

from lensmith.process.errors import InputError, IntegrityError

app = typer.Typer()


@app.command()
def fsck(
    subset: Annotated[str, typer.Option(help="n/t: read the n-th of t parts of the cache.")] = "1/1",
) -> None:
    """Read every byte of DVC's cache and of the outputs again, and put what is damaged in quarantine."""
    from lensmith.lab import fsck as checking
    from lensmith.process import amounts

    found = checking.run(Path(), subset)
    for line in found.wrong:
        typer.echo(f"error: {line}", err=True)
    typer.echo(
        f"{found.objects} objects of the cache ({amounts.size(found.size)}) and {found.files} files of the workspace "
        f"read, {len(found.wrong)} wrong"
    )
    if found.wrong:
        raise IntegrityError(f"{len(found.wrong)} files are not what was recorded; each line above says what to do.")


@app.command()
def doctor(
    *,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended without losing anything.")] = False,
) -> None:
    """Say what is wrong with this lab and this machine, why it matters, and what to do."""
    from lensmith.lab import doctor as doctors

    left = 0
    for finding in doctors.examine(Path()):
        if fix and finding.mend is not None:
            finding.mend()
            typer.echo(f"mended: {finding.what}: {finding.why}.")
        else:
            left += 1
            typer.echo(f"{finding}.")
    typer.echo(f"{left} things to do" if left else "nothing to do")
    if left:
        raise InputError("the lab is not as it should be; each line above says what to do. Nothing else was changed.")
