"""Weights from safetensors or GGUF into a model, each one from its file.

`from_pretrained` fills tensors that a checkpoint lacks with random numbers and logs a line. Here that is an error.
"""

import atexit
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.utils import logging
from transformers.utils.quantization_config import GgufConfig

from lensmith.files import cache
from lensmith.process import environment
from lensmith.process.errors import InputError, IntegrityError, NumericError, ResourceError, explained, first_line
from lensmith.source import origin, placement
from lensmith.source.configuration import NOT_LOADED
from lensmith.source.placement import Layout


def load_model(
    path: Path,
    name: str,
    dtype: torch.dtype,
    layout: Layout,
    *,
    config: PretrainedConfig | None = None,
    trusted: bool = False,
) -> PreTrainedModel:
    """The model in eval mode, every weight read from `path` and finite, placed as `layout` says.

    Args:
        path: a folder of config.json and safetensors; or a GGUF file, whose weights become plain ones.
        name: the model's, in messages.
        dtype: of its weights; quantised ones keep theirs.
        layout: where the weights go. Where `n_ranks` is above 1, each of so many processes calls this at once and
            gets its part (see `ranks`).
        config: the model's, where it was read already: the header of a GGUF file takes seconds.
        trusted: whether Python files of the folder may run.

    Raises:
        InputError: there are no safetensors, or the architecture is not known without code of the folder.
        IntegrityError: a file is broken, or tensors of model and file do not match one to one.
        NumericError: a weight holds NaN or infinity.
        ResourceError: memory does not hold the weights, or those of a GGUF file would have to stay on the disk.
    """
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # in a log file every redraw of a bar is a line
    devices = set(layout.device_map.values())
    options: dict[str, Any] = {} if config is None else {"config": config}
    if layout.n_ranks > 1:
        options["distributed_config"] = DistributedConfig(tp_size=layout.n_ranks, tp_plan=layout.tp_plan)
    elif not devices <= {"cpu"}:
        options["device_map"] = layout.device_map
    if path.is_file():
        options["quantization_config"] = GgufConfig(dequantize=True)
    # The bar of the GGUF reader heeds no setting of transformers.
    quiet = redirect_stderr(io.StringIO()) if path.is_file() and not sys.stderr.isatty() else nullcontext()
    if "disk" in devices:
        if path.is_file():
            raise ResourceError(
                f"{name}: does not fit into GPUs and memory, and a GGUF file cannot be read from disk block by block. "
                f"{NOT_LOADED}"
            )
        parent = environment.home() / "offload"
        cache.make(parent)
        options["offload_folder"] = tempfile.mkdtemp(dir=parent)
        atexit.register(shutil.rmtree, options["offload_folder"], ignore_errors=True)
    try:
        with origin.arguments(path, trusted=trusted) as arguments, quiet:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                **arguments,
                use_safetensors=True,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # for the tensor's name: `_check_weights` refuses it
                **options,
            )
    except SafetensorError as error:
        raise IntegrityError(f"{name}: a weight file is not whole safetensors ({error}). {NOT_LOADED}") from None
    except RuntimeError as error:
        unreadable = IntegrityError(f"{name}: the weights cannot be read ({first_line(error)}). {NOT_LOADED}")
        raise explained(error) or unreadable from error
    except (OSError, ValueError, KeyError, ImportError) as error:  # the last: a library that reads quantised weights
        raise InputError(f"{name}: {first_line(error)}. {NOT_LOADED}") from error
    model, info = loaded
    frozen: PreTrainedModel = model.eval().requires_grad_(False)
    _check_weights(name, frozen, info)
    return frozen


def _check_weights(name: str, model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Tensors of model and files match one to one, and are finite."""
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
    for path, module in model.named_modules():
        with placement.present(module):
            for key, weight in module.named_parameters(path, recurse=False):
                for tensor in filter(torch.is_floating_point, _plain_parts(weight)):
                    finite = torch.isfinite(tensor.float() if tensor.itemsize == 1 else tensor)
                    if not bool(finite.all()):
                        raise NumericError(
                            f"{name}: {key} holds {int((~finite).sum())} values of {tensor.numel()} that are NaN or "
                            f"infinite, as {str(tensor.dtype).removeprefix('torch.')}. {NOT_LOADED}"
                        )


def _plain_parts(tensor: Tensor) -> Iterator[Tensor]:
    """A plain tensor itself; the codes and scales of one of torchao's; this process's part of one that is shared."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor.detach()
        return
    for part in (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]):
        if isinstance(part, Tensor):  # a shared one also has the mesh of its processes there
            yield from _plain_parts(part)
