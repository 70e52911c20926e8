"""Settings for tests: the shipped ones of model `atlas`, with a few values changed."""

import functools
from pathlib import Path
from typing import Any

from lensmith.settings import params_yaml
from lensmith.settings import sections as params

REPOSITORY = Path(__file__).parents[2]


@functools.cache
def _shipped() -> params.ModelParams:
    return params_yaml.read(REPOSITORY / "params.yaml")["atlas"]  # a tenth of a second, and hundreds of tests ask


def atlas(**sections: dict[str, Any]) -> params.ModelParams:
    """The shipped settings of `atlas`, with `sections` laid over them and checked again."""
    data = _shipped().model_dump()
    for section, values in sections.items():
        data[section].update(values)
    return params.ModelParams.model_validate(data)


def fit_params(**values: Any) -> params.FitParams:
    """Section `fit` alone, without the checks against other sections."""
    return params.FitParams.model_validate({**_shipped().fit.model_dump(), **values})
