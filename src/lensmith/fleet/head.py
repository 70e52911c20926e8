"""What the head asks git and DVC before nodes begin: what they clone, what there is to do, and what that needs."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lensmith.fleet import jobs
from lensmith.fleet.jobs import Machine, Needs, Status, Tree
from lensmith.hub import model_size
from lensmith.lab import dvc
from lensmith.process import git
from lensmith.process.errors import InputError
from lensmith.settings.sections import ModelParams

# What DVC rewrites, here and on each node anew. All else in git decides what is computed.
GENERATED = ("dvc.lock", "metrics", "plots", "resolved")
NOTHING = "Nothing was started."


def tree(url: str | None) -> Tree:
    """The commit that is checked out, and where nodes get it: `url`, else the remote `origin`, else this folder.

    Raises:
        InputError: a tracked file is not as committed, or the commit is not pushed.
    """
    changed = git.run(
        "status", "--porcelain", "--untracked-files=no", "--", ".", *(f":(exclude){n}" for n in GENERATED)
    )
    commit = git.run("rev-parse", "HEAD")
    if changed is None or commit is None:
        raise InputError(f"this folder is no git repository with a commit, and nodes clone one. {NOTHING}")
    if changed:
        first = changed.splitlines()[0].split(maxsplit=1)[-1]
        raise InputError(f"git: {first} is not as committed, and nodes work on a commit. Commit first. {NOTHING}")
    origin = git.run("remote", "get-url", "origin")
    if url is None and origin is not None and not git.run("branch", "--remotes", "--contains", commit):
        raise InputError(f"git: {commit[:12]} is not in {origin}, which nodes clone. `git push` first. {NOTHING}")
    return Tree(url or origin or str(git.run("rev-parse", "--show-toplevel")), commit)


def check_remote(root: Path) -> None:
    """Nodes hand over what they made through DVC's remote, as the committed .dvc/config names it.

    Raises:
        InputError: there is none, or it is a folder by a name that is another one in each clone.
    """
    remote = dvc.default_remote(root)
    if remote is None:
        raise InputError(
            "dvc: no default remote in .dvc/config, and nodes hand over their lenses through it. `dvc remote add "
            f"--default NAME s3://BUCKET/PATH` and `dvc remote modify NAME verify true`, then commit. {NOTHING}"
        )
    name, url = remote
    if "://" not in url and not Path(url).is_absolute():
        raise InputError(f"dvc: the remote {name} is {url}, another folder in each clone; must be absolute. {NOTHING}")


def stale(root: Path, models: Sequence[str], *, fetching: bool) -> dict[str, list[str]]:
    """The heavy stages that each model has to run.

    `fetching`: what is only missing here is first had from the remote; what it does not have either is stale too.
    """
    dvc.run("repro", "resolve", root=root)
    found = _status(root, models)
    if fetching and (gone := jobs.missing(found, models)):
        with suppress(InputError):  # DVC refuses when the remote has not all; what it has is here nevertheless
            dvc.run("pull", *gone, root=root)
        found = _status(root, models)
    return jobs.stale(found, models, missing_too=fetching)


def _status(root: Path, models: Sequence[str]) -> Status:
    stages = [name for model in models for name in jobs.of(model, *jobs.HEAVY)]
    found: Status = json.loads(dvc.run("status", "--json", *stages, root=root))
    return found


def needs(settings: Mapping[str, ModelParams], machines: Sequence[Machine]) -> dict[str, Needs]:
    """What the jobs of each model ask of a machine."""
    gpus = sum(machine.gpus for machine in machines)
    return {model: jobs.needs(own, model_size.parameters(own.source), gpus) for model, own in settings.items()}
