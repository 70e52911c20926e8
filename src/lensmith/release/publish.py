"""From a judged lens to a release: packaged always, sent where the settings name a repository.

A release is sent only if all of these hold:

- sources in git are as committed;
- no gate is invalid;
- every gate passes, unless `publish.allow_failed_gates`;
- the base model's licence is in the package;
- no secrets are in it;
- the package passes its own verification.
"""

import datetime as dt
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from lensmith.files import artifacts, names
from lensmith.hub import index, models, push
from lensmith.hub.push import Parcel, Release
from lensmith.process import git
from lensmith.process.errors import InputError, RemoteError
from lensmith.release import package, secrets
from lensmith.settings.sections import ModelParams

NOT_SENT = "The package is complete; nothing was sent."


def run(settings: ModelParams, corpus: Path, lens: Path, judgement: Path, out: Path, *, page: str) -> None:
    """Stage `publish`: write the release to `out`, and send it where `publish.repo` is set; its receipt says which.

    Args:
        page: the model's report, HTML; it goes out with the lens.

    Raises:
        InputError: an input cannot be published, a check before sending failed, or the version is taken.
        IntegrityError: an input is damaged, or the Hub holds other bytes than were sent.
        NumericError: the packaged lens did not pass its verification.
        RemoteError: the Hub refused, or could not be reached.
    """
    if file := settings.publish.base_license_file:
        licence = {path.name: path.read_bytes() for path in names.files([file], "publish.base_license_file")}
    else:
        pin = artifacts.read_json(corpus / "manifest.json")["model"]
        # Asked for only where the release is sent: packaging alone needs no network.
        is_on_hub = settings.publish.repo is not None and pin["repo"] is not None
        licence = models.licence_texts(pin["repo"], pin["commit"]) if is_on_hub else {}
    package.build(settings, corpus, lens, judgement, out, licence=licence, page=page)
    if settings.publish.repo is not None:
        sent = send(settings, out)
        artifacts.write_json(out / package.RECEIPT, package.receipt(settings.model_id, out, asdict(sent)))


def send(settings: ModelParams, out: Path) -> Release:
    """Check a packaged release and send it to `publish.repo`: the same bytes are sent once. `out` is not changed.

    Raises:
        InputError: no repository is set, `out` is no release of this model, a check failed, or the version is taken.
        IntegrityError: a packaged file is damaged, or the Hub holds other bytes than were sent.
        NumericError: the packaged lens did not pass its verification.
        RemoteError: the Hub refused, or could not be reached.
    """
    repo, parcel = settings.publish.repo, _parcel(settings, out)
    if repo is None:
        raise InputError(f"params.yaml: models.{settings.key}.publish.repo is not set, so there is nowhere to send to")
    _check(settings, parcel)  # the cheap checks come first
    from lensmith.release import verify  # it needs torch, and only here

    verify.run(out, settings.model_id)
    return push.push(parcel, repo, dt.datetime.now(dt.UTC).date())


def _check(settings: ModelParams, parcel: Parcel) -> None:
    """InputError if uncommitted sources, a gate, the licence or a secret forbid sending."""
    changed = git.uncommitted(untracked=True)
    if changed is None:
        raise InputError(f"this folder is no git repository, so nobody could tell what made the release. {NOT_SENT}")
    if changed:
        raise InputError(f"git: {changed} is not as committed. Commit first, then publish. {NOT_SENT}")
    model_id, entry = settings.model_id, parcel.entry
    for gate, verdict in entry["verdicts"].items():
        where = f"{gate.replace('_', ' ')} of {model_id} is {verdict}"
        if verdict == "invalid":
            raise InputError(f"{where}: it was not measured as it must be, and cannot be published. {NOT_SENT}")
        if verdict != "pass" and not entry["allow_failed_gates"]:
            raise InputError(
                f"{where}. A lens that did not pass is sent only with publish.allow_failed_gates: true, which "
                f"{index.INDEX} then says. {NOT_SENT}"
            )
    if not any(path.startswith(f"LICENSES/{model_id}/") for path in entry["licenses"]):
        unknown = "its repository has none" if settings.publish.repo else "it is asked for only with publish.repo set"
        raise InputError(
            f"params.yaml: models.{settings.key}.publish.base_license_file: names no file, and the package holds no "
            f"licence text of {model_id}: {unknown}. {NOT_SENT}"
        )
    secrets.refuse(parcel.folder)


def preview(settings: ModelParams, out: Path) -> Iterator[str]:
    """What sending a packaged release would do, in lines; nothing is sent.

    The package is checked here. The Hub is asked only if `publish.repo` is set; if it does not answer, a line says what
    was not looked at.
    """
    repo, parcel, today = settings.publish.repo, _parcel(settings, out), dt.datetime.now(dt.UTC).date()
    yield f"{out}: {parcel.model_id}, tag {parcel.tag or f'v{today:%Y.%m.%d}, or the next free one of that day'}"
    for path in parcel.hashes:
        yield f"{(out / path).stat().st_size:>12} bytes  {path}"
    try:
        _check(settings, parcel)
    except InputError as error:
        yield f"would be refused: {error}"
    yield f"not looked at: what the lens does. `lensmith verify {out}` measures it, as sending does first"
    if repo is None:
        yield f"not looked at: the Hub. params.yaml: models.{settings.key}.publish.repo is not set"
        return
    try:
        yield from push.preview(parcel, repo, today)
    except RemoteError as error:
        yield f"not looked at: which tag is free, and the change to {index.INDEX}. {error}"


def _parcel(settings: ModelParams, out: Path) -> Parcel:
    """A packaged release as it is sent."""
    if settings.model_id not in index.read(out):
        raise InputError(f"{out}: {index.INDEX} has no lens for {settings.model_id}. `dvc repro` packages it.")
    entry = artifacts.read_json(out / index.INDEX)[settings.model_id]
    return Parcel(settings.model_id, out, entry, package.dataset_card, settings.publish.tag)
