"""Kinds of values that the sections of params.yaml share: numbers with bounds, names of the Hub, paths."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

# Larger numbers are typing errors that would exhaust memory or time.
_MOST = 10**12
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=_MOST)]
Epochs = Annotated[float, Field(gt=0, le=10_000)]
NonNegative = Annotated[float, Field(ge=0)]
NonNegativeInt = Annotated[int, Field(ge=0, le=_MOST)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
COMMIT = re.compile(r"[0-9a-f]{40}")


def int_or(word: str, least: int = 1) -> BeforeValidator:
    """An integer >= `least`, or `word`."""

    def check(value: object) -> object:
        # `type() is`, not isinstance: YAML's `rank: true` is a bool, and a bool is an int.
        if value == word or (type(value) is int and least <= value <= _MOST):
            return value
        raise ValueError(f"must be an integer >= {least} or {word}")

    return BeforeValidator(check)


def _matching(pattern: str, rule: str) -> AfterValidator:
    def check(value: str) -> str:
        if re.fullmatch(pattern, value) and ".." not in value and "--" not in value:
            return value
        raise ValueError(f"must be {rule}")

    return AfterValidator(check)


Repo = Annotated[str, _matching(f"{_NAME}/{_NAME}", "org/name")]
Dataset = Annotated[str, _matching(f"(?:{_NAME}/)?{_NAME}", "org/name, or the name of a data set without org")]
Revision = Annotated[str, _matching(r"[A-Za-z0-9_][A-Za-z0-9_./+-]{0,254}", "a branch, tag or commit")]
GgufName = Annotated[str, _matching(r"[A-Za-z0-9_-][\w.+-]*\.gguf", "a .gguf file in the top folder of the repository")]
License = Annotated[str, _matching(r"[A-Za-z0-9][A-Za-z0-9.+() -]{0,95}", "an SPDX id such as Apache-2.0")]
Label = Annotated[str, _matching(r"[a-z][a-z0-9_]{0,30}", "a short name of a-z, 0-9 and _")]  # part of names of KPIs
Word = Annotated[str, Field(min_length=1, max_length=500)]  # a path, a column, a split
