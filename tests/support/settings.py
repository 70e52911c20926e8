"""Settings for tests: the shipped ones of model `atlas` at rank auto, since their models are narrower than its rank."""

import functools
from pathlib import Path
from typing import Any

from lensmith.settings import params_yaml
from lensmith.settings import sections as params

REPOSITORY = Path(__file__).parents[2]


@functools.cache
def shipped() -> params.ModelParams:
    """Those of `atlas`, at rank auto."""
    shipped = params_yaml.read(REPOSITORY / "params.yaml")["atlas"]  # a tenth of a second, and hundreds of tests ask
    return shipped.model_copy(update={"fit": shipped.fit.model_copy(update={"rank": "auto"})})


def atlas(**sections: dict[str, Any]) -> params.ModelParams:
    """The settings of `atlas`, with `sections` laid over them and checked again."""
    data = shipped().model_dump()
    for section, values in sections.items():
        data[section].update(values)
    return params.ModelParams.model_validate(data)


def fit_params(**values: Any) -> params.FitParams:
    """Section `fit` alone, without the checks against other sections."""
    return params.FitParams.model_validate({**shipped().fit.model_dump(), **values})
