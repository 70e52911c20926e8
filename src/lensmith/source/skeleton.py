"""A model before a weight is read: its configuration, its device and dtype, and its modules on torch's meta device.

`placement` decides from a skeleton where the weights go and whether they fit; `loading` then reads them.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from lensmith.hub.pins import ModelPin, model_path
from lensmith.settings.sections import SourceParams
from lensmith.source.configuration import is_quantised, read_config
from lensmith.source.gguf_model import plain_folder

# `auto` leaves smaller models on a CPU in float32: it costs little there and avoids the rounding of bfloat16.
_BF16_MIN_PARAMETERS = 200_000_000

# CPU capabilities with bfloat16 products. Without them torch emulates bfloat16, far slower than float32.
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16")


@dataclass(frozen=True)
class Skeleton:
    """What is known of a model before its weights are read."""

    path: Path  # the folder
    name: str  # in messages
    device: torch.device  # of the head, and of the lens that is fit
    dtype: torch.dtype
    trusted: bool  # whether Python files of the folder may run
    model: PreTrainedModel  # on the meta device

    @classmethod
    def read(cls, source: SourceParams, pin: ModelPin) -> Self:
        """The skeleton of `pin`, from files that match its hashes.

        Raises:
            InputError: config.json cannot be used, or is of an unknown architecture.
            IntegrityError: a file is missing or changed.
            InputError, IntegrityError, ResourceError: a GGUF file cannot be converted.
        """
        path = plain_folder(model_path(pin), pin.place)
        trusted = source.trust_remote_code  # never from the pin: pins come with other people's lenses
        config = read_config(path, pin.place, trusted=trusted)
        device = pick_device(source.device)
        dtype = pick_dtype(source.dtype, config, device, trusted=trusted)
        model = meta_model(config, dtype, trusted=trusted)
        if is_quantised(config):
            stored = [path / file for file in pin.files if file.endswith(".safetensors")]
            shrink_blocks(model, sum(file.stat().st_size for file in stored))
        return cls(path, pin.place, device, dtype, trusted, model)


def pick_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(dtype: str, config: PretrainedConfig, device: torch.device, *, trusted: bool = False) -> torch.dtype:
    """`auto` is bfloat16 where the device has it in hardware; float32 elsewhere, and for a small model on a CPU.

    For a quantised model `auto` is the dtype of its other weights: some of its products accept no other.
    """
    if dtype != "auto":
        picked: torch.dtype = getattr(torch, dtype)
        return picked
    if is_quantised(config) and isinstance(config.dtype, torch.dtype):
        return config.dtype
    if not has_fast_bf16(device):
        return torch.float32
    if device.type != "cpu":
        return torch.bfloat16
    n_parameters = meta_model(config, torch.bfloat16, trusted=trusted).num_parameters()
    return torch.float32 if n_parameters < _BF16_MIN_PARAMETERS else torch.bfloat16


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in _BF16_INSTRUCTIONS)


def meta_model(config: PretrainedConfig, dtype: torch.dtype, *, trusted: bool = False) -> PreTrainedModel:
    """The modules of a model, its parameters without memory."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trusted)
    model.tie_weights()
    return model


def shrink_blocks(model: PreTrainedModel, n_bytes: int) -> None:
    """Give a quantised model `n_bytes` of weights in all; only the weights of its blocks are stored in fewer bits."""
    if not (lists := block_lists(model)):
        return
    modules = [module for block in lists[0][1] for module in block.modules()]
    weights = [(module, *named) for module in modules for named in list(module.named_parameters(recurse=False))]
    n_inside = sum(weight.numel() for _, _, weight in weights)
    outside_bytes = (model.num_parameters() - n_inside) * model.dtype.itemsize
    bytes_per_weight = max(0.0, n_bytes - outside_bytes) / n_inside
    for module, name, weight in weights:
        stored = torch.empty(math.ceil(weight.numel() * bytes_per_weight), dtype=torch.uint8, device="meta")
        module.register_parameter(name, nn.Parameter(stored, requires_grad=False))


def block_lists(model: PreTrainedModel) -> list[tuple[str, tuple[nn.Module, ...]]]:
    """ModuleLists of num_hidden_layers modules with their paths, the nearest to the root first."""
    n_blocks = model.config.get_text_config().num_hidden_layers
    lists = [(path, tuple(module)) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    deep = [(path, modules) for path, modules in lists if len(modules) == len(set(modules)) == n_blocks]
    return sorted(deep, key=lambda item: item[0].count("."))
