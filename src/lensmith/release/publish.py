"""From a judged lens to a release: packaged always, sent only where the settings name a target.

Before anything is sent: sources in git are as committed, gates are valid and (unless the settings allow) green, the
base model's licence is in the package, no secrets are, and the package passes its own verification.
"""

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from lensmith.files import artifacts
from lensmith.hub import index, push, releases
from lensmith.hub.push import Parcel
from lensmith.judge import scorecard
from lensmith.process import git
from lensmith.process.errors import InputError
from lensmith.release import package, secrets
from lensmith.report import page as report
from lensmith.settings.sections import ModelParams

# What `dvc repro` itself rewrites; everything else in git decides what a release is.
GENERATED = ("dvc.lock", "metrics", "plots", "resolved")
NOT_SENT = "The package is complete; nothing was sent."


@dataclass(frozen=True)
class Sources:
    """Where the inputs of one release lie."""

    settings: Path
    corpus: Path
    lens: Path
    metrics: Path
    kl: Path
    cosine: Path
    earliness: Path
    training: Path
    detail: Path

    def folders(self) -> report.Folders:
        """The folders of these files, as a report over all models reads them."""
        drawn = (self.settings, self.metrics, self.kl, self.cosine, self.earliness, self.training, self.detail)
        return report.Folders(*(file.parent for file in drawn))


def run(settings: ModelParams, sources: Sources, out: Path) -> None:
    """Stage `publish`: write `out`, and send it where `publish.repo` is set. Its receipt says what was done.

    Raises:
        InputError: an input cannot be published, a check before sending failed, or the version is taken.
        IntegrityError: an input is damaged, or the Hub holds other bytes than were sent.
        NumericError: the packaged lens did not pass its verification.
        RemoteError: the Hub refused, or could not be reached.
    """
    page = report.page_of(sources.settings, sources.folders())
    licence = _base_licence(settings, sources.corpus)
    package.build(settings, sources.corpus, sources.lens, sources.metrics, out, licence=licence, page=page)
    if settings.publish.repo is None:
        return
    check(settings, sources.metrics, licence, out)
    done = push.push(parcel(settings, out), settings.publish.repo, dt.datetime.now(dt.UTC).date())
    artifacts.write_json(out / package.RECEIPT, package.receipt(settings.model_id, out, asdict(done)))


def preview(settings: ModelParams, out: Path) -> Iterator[str]:
    """What sending a packaged release would do, in lines. It sends nothing."""
    if settings.publish.repo is None:
        raise InputError(f"params.yaml: models.{settings.key}.publish.repo is not set, so nothing would be sent")
    return push.preview(parcel(settings, out), settings.publish.repo, dt.datetime.now(dt.UTC).date())


def parcel(settings: ModelParams, out: Path) -> Parcel:
    """A packaged release as it is sent."""
    index.read(out)
    entry = artifacts.read_json(out / index.INDEX)[settings.model_id]
    return Parcel(settings.model_id, out, entry, package.dataset_card, settings.publish.tag)


def check(settings: ModelParams, metrics: Path, licence: Mapping[str, bytes], out: Path) -> None:
    """All that can be known before the Hub is asked. The cheap checks come first."""
    _check_git()
    _check_gates(settings, scorecard.read(metrics, settings))
    if not licence:
        raise InputError(
            f"params.yaml: models.{settings.key}.publish.base_license_file: the licence text of {settings.model_id} is "
            f"not known; neither its repository nor this setting gives it. {NOT_SENT}"
        )
    secrets.refuse(out)
    from lensmith.release import verify  # it needs torch, and only here

    verify.run(out, settings.model_id)


def _base_licence(settings: ModelParams, corpus: Path) -> dict[str, bytes]:
    """Licence and notices of the base model by file name: as the settings say, or those of its own repository."""
    if file := settings.publish.base_license_file:
        return {Path(file).name: Path(file).read_bytes()}
    pin = artifacts.read_json(corpus / "manifest.json")["model"]
    # Only for a release that is sent: packaging alone needs no network.
    if settings.publish.repo is None or pin["repo"] is None:
        return {}
    return releases.licence_texts(pin["repo"], pin["commit"])


def _check_git() -> None:
    changed = git.run("status", "--porcelain", "--", ".", *(f":(exclude){name}" for name in GENERATED))
    if changed is None:
        raise InputError(f"this folder is no git repository, so nobody could tell what made the release. {NOT_SENT}")
    if changed:
        first = changed.splitlines()[0].split(maxsplit=1)[-1]
        raise InputError(f"git: {first} is not as committed. Commit first, then publish. {NOT_SENT}")


def _check_gates(settings: ModelParams, card: scorecard.Scorecard) -> None:
    for gate in card.gates:
        where = f"gate {gate.letter} of {settings.model_id} is {gate.verdict}"
        if gate.verdict == "invalid":
            raise InputError(f"{where}: it was not measured as it must be, and cannot be published. {NOT_SENT}")
        if gate.verdict != "pass" and not settings.publish.allow_failed_gates:
            raise InputError(
                f"{where}. A lens that did not pass is sent only with publish.allow_failed_gates: true, which "
                f"{index.INDEX} then says. {NOT_SENT}"
            )
