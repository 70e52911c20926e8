"""From a folder of safetensors to a model whose every weight is the file's.

`from_pretrained` draws at random what a checkpoint lacks, and says so in a log line. Here that is an error.
"""

import atexit
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.utils import logging

from lensmith.files import cache
from lensmith.process.errors import InputError, IntegrityError, NumericError
from lensmith.source import placement, remote_code
from lensmith.source.placement import Device

# Below this many parameters fp32 costs little anywhere, and spares a demo or a test the rounding of bf16.
_FP32_PARAMETERS = 200_000_000

# What a processor calls its bf16 product instructions. Without them torch emulates bf16, at a fraction of fp32's speed.
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16")

NOT_LOADED = "The model was not loaded."


def read_config(folder: Path, where: str, *, trusted: bool = False) -> PretrainedConfig:
    """config.json of a model that this version of transformers knows, or `trusted` code of the folder."""
    remote_code.check(folder, where)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=trusted, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        _refuse(where, error)
    return config


def pick_device(device: str) -> torch.device:
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(dtype: str, config: PretrainedConfig, device: torch.device, *, trusted: bool = False) -> torch.dtype:
    """`auto` is bfloat16 where the device has it in hardware; float32 elsewhere, and for a small model on a CPU.

    Of a quantised model it is what its other weights have: some of its products know no other.
    """
    if dtype != "auto":
        picked: torch.dtype = getattr(torch, dtype)
        return picked
    if placement.is_quantised(config) and isinstance(config.dtype, torch.dtype):
        return config.dtype
    if not has_fast_bf16(device):
        return torch.float32
    if device.type != "cpu":
        return torch.bfloat16
    n_parameters = placement.skeleton(config, torch.bfloat16, trusted=trusted).num_parameters()
    return torch.float32 if n_parameters < _FP32_PARAMETERS else torch.bfloat16


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in _BF16_INSTRUCTIONS)


def load_model(
    folder: Path,
    where: str,
    dtype: torch.dtype,
    device_map: Mapping[str, Device],
    *,
    trusted: bool = False,
    n_ranks: int = 1,
) -> PreTrainedModel:
    """The model in eval mode, every tensor read from the folder to the device that `device_map` has for it.

    `where` is its name in messages; `trusted`: whether the folder's own Python files may run; `n_ranks`: how many
    processes load it together, each its part (`source.ranks`).

    Raises:
        InputError: there are no safetensors, or the architecture is not known without remote code.
        IntegrityError: a file is broken, or tensors of model and file do not match one to one.
    """
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # in a log file every redraw of a bar is a line
    shared = None if n_ranks == 1 else _shared(folder, where, dtype, n_ranks, trusted=trusted)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=trusted,
            local_files_only=True,
            dtype=dtype,
            output_loading_info=True,
            device_map=None if set(device_map.values()) <= {"cpu"} else dict(device_map),
            distributed_config=shared,
            offload_folder=_offload() if "disk" in device_map.values() else None,
            # Not to accept them: to learn the tensor's name, which the refusal then says.
            ignore_mismatched_sizes=True,
        )
    except SafetensorError as error:
        raise IntegrityError(f"{where}: a weight file is not whole safetensors ({error}). {NOT_LOADED}") from None
    except RuntimeError as error:
        raise IntegrityError(f"{where}: the weights cannot be read ({_first_line(error)}). {NOT_LOADED}") from error
    except (OSError, ValueError, KeyError, ImportError) as error:  # the last: a library that reads quantised weights
        _refuse(where, error)
    model, info = loaded
    _check_keys(where, info)
    frozen: PreTrainedModel = model.eval().requires_grad_(False)
    return frozen


def _shared(folder: Path, where: str, dtype: torch.dtype, n: int, *, trusted: bool) -> DistributedConfig:
    """Each block split over `n` processes."""
    frame = placement.skeleton(read_config(folder, where, trusted=trusted), dtype, trusted=trusted)
    return DistributedConfig(tp_size=n, tp_plan=placement.whole_outside_blocks(frame, n))


def _offload() -> Path:
    """A folder for what is on the disk, until this process ends."""
    parent = cache.home() / "offload"
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def load_tokenizer(
    folder: Path, where: str, config: PretrainedConfig, rows: int, *, trusted: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of the same folder.

    Raises:
        InputError: it is missing, or gives ids beyond the embedding's `rows`.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, config=config, trust_remote_code=trusted, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        _refuse(f"{where}: tokenizer", error)
    if len(tokenizer) > rows:
        raise InputError(
            f"{where}: the tokenizer has {len(tokenizer)} tokens, but the embedding has {rows} rows; a tokenizer "
            f"may have at most as many. {NOT_LOADED}"
        )
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def check_finite(model: PreTrainedModel, where: str) -> None:
    """NumericError for the first weight that holds NaN or infinity."""
    for path, module in model.named_modules():
        with placement.present(module):
            for own, parameter in module.named_parameters(path, recurse=False):
                _check_finite(own, parameter, where)


def _check_finite(name: str, parameter: Tensor, where: str) -> None:
    for part in filter(Tensor.is_floating_point, _parts(parameter)):
        finite = torch.isfinite(part.float() if part.itemsize == 1 else part)
        if not bool(finite.all()):
            raise NumericError(
                f"{where}: {name} holds {int((~finite).sum())} values of {part.numel()} that are NaN or infinite, "
                f"as {str(part.dtype).removeprefix('torch.')}. {NOT_LOADED}"
            )


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """A plain tensor itself; of one that is made of others, as torchao's codes and scales, those.

    Of one that is shared by processes, what this process holds.
    """
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor.detach()
        return
    for part in (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]):
        if isinstance(part, Tensor):  # a shared one also has the mesh of its processes there
            yield from _parts(part)


def _check_keys(where: str, info: dict[str, Any]) -> None:
    # Of the tensors that only the file has, weights mean another model; old checkpoints also kept buffers.
    unexpected = sorted(key for key in info["unexpected_keys"] if key.endswith(".weight"))
    mismatched = sorted(info["mismatched_keys"])
    missing = sorted(info["missing_keys"])
    if mismatched:
        name, found, wanted = mismatched[0][:3]
        found, wanted = tuple(found), tuple(wanted)
        problem = f"{name} is {found} in the file, but {wanted} by config.json{_more(mismatched)}"
    elif missing:
        problem = f"{missing[0]} is not in the weight files and would be random{_more(missing)}"
    elif unexpected:
        problem = f"{unexpected[0]} is in the weight files, but the model of config.json has no such weight"
        problem += _more(unexpected)
    else:
        return
    raise IntegrityError(f"{where}: {problem}. {NOT_LOADED}")


def _more(keys: list[Any]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""


def _refuse(where: str, error: Exception) -> NoReturn:
    raise InputError(f"{where}: {_first_line(error)}. {NOT_LOADED}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
