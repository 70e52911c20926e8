"""JSON files whose form is one pydantic class: written whole, read with one clear error."""

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from lensmith.files import artifacts
from lensmith.process.errors import IntegrityError, shown

# None stands for NaN and infinity.
Number = Annotated[
    float | None,
    BeforeValidator(lambda value: value if not isinstance(value, float) or math.isfinite(value) else None),
]


class Record(BaseModel):
    """Data of a JSON file, or of a part of one. Strict: nothing is converted, no key is missing or unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True, validate_by_name=True)

    @classmethod
    def read(cls, path: Path) -> Self:
        """One file of this form.

        Raises:
            IntegrityError: it is missing, or has another form; the message names the first field that is wrong.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise IntegrityError(f"{path}: missing. `dvc repro` writes it.") from None
        except ValidationError as error:
            raise IntegrityError(f"{path}: {explain(error)}. `dvc repro` writes it again.") from None

    def write(self, path: Path) -> None:
        """Indented, keys sorted; a number that is not finite becomes null."""
        artifacts.write_json(path, self.data())

    def data(self) -> dict[str, Any]:
        """The same as plain JSON data, without NaN and infinity, for which JSON has no word."""
        data: dict[str, Any] = json.loads(self.model_dump_json())
        return data


def explain(error: ValidationError) -> str:
    """The first thing that pydantic found, in words: `heldout.block_seqs is missing`."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{field} is missing"
    if first["type"] == "extra_forbidden":
        return f"{field} is not a field"
    rule = re.sub(r"^\w+ should ", "must ", first["msg"].removeprefix("Value error, "))
    if field and rule.startswith("must "):
        return f"{field} is {shown(repr(first['input']))}, {rule}"
    return f"{field} {rule}".strip()  # a rule of ours, which says what it found
