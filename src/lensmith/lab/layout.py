"""Where a lab's files lie, relative to its root, and which models it has. dvc.yaml names each output of a stage."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lensmith.process import git
from lensmith.process.errors import InputError
from lensmith.settings import params_yaml, resolved
from lensmith.settings.sections import ModelParams

PARAMS = Path("params.yaml")
LOCK = Path("dvc.lock")
RESOLVED = Path("resolved")
ARTIFACTS = Path("artifacts")
METRICS = Path("metrics")
PLOTS = Path("plots")
RELEASES = Path("release")
JUDGEMENTS = PLOTS / "judgement"
PAGE = PLOTS / "report.html"
OUTPUTS = (ARTIFACTS, METRICS, PLOTS, RELEASES, RESOLVED)


def models(keys: Sequence[str] = (), untouched: str = "Nothing was changed.") -> dict[str, ModelParams]:
    """The models of params.yaml that are called `keys`, by key; all of them where there are no keys.

    Raises:
        InputError: params.yaml is not valid, or has no such model. `untouched` ends the message.
    """
    settings = params_yaml.read(PARAMS)
    for key in keys:
        if key not in settings:
            raise InputError(f"{PARAMS}: no model {key}; there is {', '.join(settings)}. {untouched}")
    return {key: settings[key] for key in keys or settings}


def untracked(models: Mapping[str, ModelParams]) -> Iterator[tuple[str, Path]]:
    """(models.key.section, the first such file) for each section that names files which git does not track.

    A queued experiment is a copy of what git tracks. Files with an absolute name need no copy.
    """
    listed = git.run("ls-files", "-z")
    if listed is None:
        return
    tracked = {Path(name) for name in listed.split("\0")}
    for key, settings in models.items():
        for section, files in resolved.local_files(settings).items():
            for file in files:
                # git tracks a link to a folder, not the files behind it, so a tracked parent counts too.
                if not file.is_absolute() and tracked.isdisjoint({file, *file.parents[:-1]}):
                    yield f"models.{key}.{section}", file
                    break
