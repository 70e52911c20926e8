"""Where a lab's files lie, relative to its root, and which models it has. dvc.yaml names each output of a stage."""

from collections.abc import Sequence
from pathlib import Path

from lensmith.process.errors import InputError
from lensmith.settings import params_yaml
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
