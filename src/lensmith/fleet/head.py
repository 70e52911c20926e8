"""What the head asks git and DVC before nodes begin: the commit that they clone, what is stale, and what it needs."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lensmith.fleet import jobs
from lensmith.fleet.jobs import JobNeeds, LabCommit, Node, Status
from lensmith.hub import models as hub_models
from lensmith.lab import dvc
from lensmith.process import git
from lensmith.process.errors import InputError
from lensmith.settings.sections import ModelParams

NOTHING = "Nothing was started."


def lab_commit(url: str | None) -> LabCommit:
    """The commit that is checked out, and where nodes clone it: `url`, else the remote `origin`, else this folder.

    Raises:
        InputError: a tracked file is not as committed, the commit is not pushed, or the lab is not the top folder.
    """
    changed = git.uncommitted(untracked=False)
    commit = git.run("rev-parse", "HEAD")
    if changed is None or commit is None:
        raise InputError(f"this folder is no git repository with a commit, and nodes clone one. {NOTHING}")
    if changed:
        raise InputError(f"git: {changed} is not as committed, and nodes work on a commit. Commit first. {NOTHING}")
    if git.run("rev-parse", "--show-prefix"):
        raise InputError(f"this lab is a folder of its repository, and nodes work in the top one of a clone. {NOTHING}")
    origin = git.run("remote", "get-url", "origin")
    if url is None and origin is not None and not git.run("branch", "--remotes", "--contains", commit):
        raise InputError(f"git: {commit[:12]} is not in {origin}, which nodes clone. `git push` first. {NOTHING}")
    return LabCommit(url or origin or str(git.run("rev-parse", "--show-toplevel")), commit)


def check_remote(root: Path) -> None:
    """Check the remote through which nodes return their results, as the committed .dvc/config names it.

    Raises:
        InputError: there is none, or its path means another folder in each clone.
    """
    remote = dvc.default_remote(root)
    if remote is None:
        raise InputError(
            "dvc: no default remote in .dvc/config, and nodes return their lenses through it. `dvc remote add "
            f"--default NAME s3://BUCKET/PATH` and `dvc remote modify NAME verify true`, then commit. {NOTHING}"
        )
    name, url = remote
    if "://" not in url and not Path(url).is_absolute():
        raise InputError(f"dvc: the remote {name} is {url}, another folder in each clone; must be absolute. {NOTHING}")


def stale(root: Path, models: Sequence[str], *, fetching: bool) -> dict[str, list[str]]:
    """The heavy stages that each model has to run.

    Args:
        fetching: pull what is only missing here; a stage is stale too if the remote does not have it either.
    """
    dvc.run("repro", "resolve", root=root)
    status = _status(root, models)
    if fetching and (missing := jobs.missing(status, models)):
        with suppress(InputError):  # DVC refuses if the remote has not all of it; what it has is pulled nevertheless
            dvc.run("pull", *missing, root=root)
        status = _status(root, models)
    return jobs.stale(status, models, missing_too=fetching)


def _status(root: Path, models: Sequence[str]) -> Status:
    names = [name for model in models for name in jobs.stage_names(model, *jobs.HEAVY)]
    status: Status = json.loads(dvc.run("status", "--json", *names, root=root))
    return status


def needs(settings: Mapping[str, ModelParams], nodes: Sequence[Node]) -> dict[str, JobNeeds]:
    """What the jobs of each model need of a node."""
    gpus = sum(node.gpus for node in nodes)
    return {key: jobs.needs(model, hub_models.count_parameters(model.source), gpus) for key, model in settings.items()}
