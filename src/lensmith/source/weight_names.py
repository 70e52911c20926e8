"""Whether the tensors of a model and of its files match one to one, as `from_pretrained` reports it.

It fills tensors that the files lack with random numbers and logs a line. Here that is an error.
"""

from typing import Any

from lensmith.process.errors import IntegrityError
from lensmith.source.configuration import NOT_LOADED


def check_names(name: str, info: dict[str, Any]) -> None:
    """Check what `from_pretrained` says with `output_loading_info`; `name` is the model's in messages.

    Raises:
        IntegrityError: a tensor is missing, is one too many, or has another shape.
    """
    # Old checkpoints also hold buffers that today's model computes; a weight that it lacks means another model.
    unexpected = sorted(key for key in info["unexpected_keys"] if key.endswith(".weight"))
    mismatched, missing = sorted(info["mismatched_keys"]), sorted(info["missing_keys"])
    problem = ""
    if mismatched:
        key, in_file, in_model = mismatched[0][:3]
        problem = f"{key} is {tuple(in_file)} in the file, but {tuple(in_model)} by config.json"
    elif missing:
        problem = f"{missing[0]} is not in the weight files and would be random"
    elif unexpected:
        problem = f"{unexpected[0]} is in the weight files, but the model of config.json has no such weight"
    if problem:
        n_more = len(mismatched or missing or unexpected) - 1
        raise IntegrityError(f"{name}: {problem}{f' (and {n_more} more)' if n_more else ''}. {NOT_LOADED}")
