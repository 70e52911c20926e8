"""Weights from safetensors into a model, each one from its file."""

import atexit
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.utils import logging

from lensmith.files import cache
from lensmith.process import environment
from lensmith.process.errors import InputError, IntegrityError, NumericError, explained, first_line
from lensmith.source import placement
from lensmith.source.configuration import NOT_LOADED
from lensmith.source.placement import Layout
from lensmith.source.weight_names import check_names


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
        path: a folder of config.json and safetensors.
        name: the model's, in messages.
        dtype: of its weights; quantised ones keep theirs.
        layout: where the weights go. Where `n_ranks` is above 1, each of so many processes calls this at once and
            gets its part (see `ranks`).
        config: the model's, where it was read already.
        trusted: whether Python files of the folder may run.

    Raises:
        InputError: there are no safetensors, or the architecture is not known without code of the folder.
        IntegrityError: a file is broken, or tensors of model and file do not match one to one.
        NumericError: a weight holds NaN or infinity.
        ResourceError: memory does not hold the weights.
    """
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # in a log file every redraw of a bar is a line
    devices = set(layout.device_map.values())
    options: dict[str, Any] = {} if config is None else {"config": config}
    if layout.n_ranks > 1:
        options["distributed_config"] = DistributedConfig(tp_size=layout.n_ranks, tp_plan=layout.tp_plan)
    elif not devices <= {"cpu"}:
        options["device_map"] = layout.device_map
    if "disk" in devices:
        parent = environment.home() / "offload"
        cache.make(parent)
        options["offload_folder"] = tempfile.mkdtemp(dir=parent)
        atexit.register(shutil.rmtree, options["offload_folder"], ignore_errors=True)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            trust_remote_code=trusted,
            local_files_only=True,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # for the tensor's name: `check_names` refuses it
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
    check_names(name, info)
    check_finite(name, frozen)
    return frozen


def check_finite(name: str, model: PreTrainedModel) -> None:
    """NumericError where a weight holds NaN or infinity."""
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
