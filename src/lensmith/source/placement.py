"""Where a model goes that is larger than one device, and whether it fits at all.

single   all of it on `source.device`
auto     blocks fill the GPUs in their order, then the CPU's memory, then the disk (accelerate); what is no block, the
         head among it, stays on the first device, where the lens is fit. Blocks off a GPU are brought to one to run
tp       each block is split over processes (`ranks`), one a GPU; what is no block is whole on each

Memory is estimated from the configuration, before a weight is read: weights in the dtype that was picked, a copy of W_U
in fp32, and what the caller needs beside it.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import psutil
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from lensmith.process.errors import InputError, ResourceError

GIB = 2**30
WORKING = 2 * GIB  # activations of a pass and chunks of logits, on each device that runs blocks

Placement = Literal["single", "auto", "tp"]
Device = int | str  # a GPU's index, "cpu" or "disk", as accelerate names them


@dataclass(frozen=True)
class LensMemory:
    """Memory that fitting a lens takes on the device of the head."""

    size: Callable[[int, int], int]  # bytes for a lens of so many blocks of so many dimensions
    after_release: bool = False  # allocated once the weights are freed


NO_LENS = LensMemory(lambda _n_layers, _d_model: 0)  # of a caller that fits no lens


@dataclass(frozen=True)
class Needs:
    """Bytes on the device that fits the lens."""

    weights: int
    head: int  # W_U in fp32
    lens: int  # while it is trained
    after_release: bool = False  # the lens is trained once the weights are freed

    @property
    def total(self) -> int:
        return self.beside(self.weights)

    def beside(self, weights: int) -> int:
        """The most at any time, where so much of the weights is on that device."""
        return self.head + WORKING + (max(weights, self.lens) if self.after_release else weights + self.lens)

    def __str__(self) -> str:
        word = ", then " if self.after_release else ", "
        held = f"{_gib(self.weights)} weights{word}{_gib(self.lens)} lens"
        return f"{_gib(self.total)} ({held}, {_gib(self.head)} head in fp32, {_gib(WORKING)} working memory)"


def skeleton(config: PretrainedConfig, dtype: torch.dtype, *, trusted: bool = False) -> PreTrainedModel:
    """The model without its weights."""
    with torch.device("meta"):
        made: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trusted)
    made.tie_weights()
    return made


def is_quantised(config: PretrainedConfig) -> bool:
    """Whether a configuration says that weights are stored in fewer bits than its dtype has."""
    return getattr(config, "quantization_config", None) is not None


def pack(model: PreTrainedModel, stored: int) -> None:
    """Give the skeleton of a quantised model the size of its files, in bytes: what is no block has its dtype there."""
    if not (lists := block_lists(model)):
        return
    inside = [(module, *named) for b in lists[0][1] for module in b.modules() for named in _own(module)]
    n_inside = sum(weight.numel() for _, _, weight in inside)
    rest = (model.num_parameters() - n_inside) * model.dtype.itemsize
    share = max(0.0, stored - rest) / n_inside
    for module, name, weight in inside:
        _put(module, name, torch.empty(math.ceil(weight.numel() * share), dtype=torch.uint8, device="meta"))


def _own(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters(recurse=False))


def _put(module: nn.Module, name: str, weight: torch.Tensor) -> None:
    module.register_parameter(name, nn.Parameter(weight, requires_grad=False))


def needs(model: PreTrainedModel, lens_memory: LensMemory) -> Needs:
    """What a skeleton needs."""
    W_U = model.get_output_embeddings()
    head = 0 if W_U is None else 4 * W_U.weight.numel()
    text = model.config.get_text_config()
    lens = lens_memory.size(text.num_hidden_layers, text.hidden_size)
    weights = sum(map(_bytes, model.parameters()))  # a tied weight is one parameter
    return Needs(weights, head, lens, lens_memory.after_release)


def device_map(
    model: PreTrainedModel,
    asked: Placement,
    device: torch.device,
    where: str,
    lens_memory: LensMemory,
    *,
    n_ranks: int = 1,
) -> dict[str, Device]:
    """Where each part of a skeleton goes, as `from_pretrained` takes it; `lens_memory` is what the caller holds there.

    Blocks are shared by `n_ranks` processes, whose memory is one on a CPU.

    Raises:
        ResourceError: it does not fit; with numbers, and the setting that would do.
        InputError: it cannot be shared so.
    """
    need = needs(model, lens_memory)
    if asked == "auto" and (lists := block_lists(model)):
        return _spread(model, lists[0][1], need, device, where)
    if asked == "tp":
        whole_outside_blocks(model, n_ranks)
        split = sum(map(_size, block_lists(model)[0][1]))
        rest = need.weights - split
        is_cpu = device.type == "cpu"
        need = replace(need, weights=split + n_ranks * rest if is_cpu else split // n_ranks + rest)
    _check_single(need, device, where)
    return {"": _key(device)}


def block_lists(model: PreTrainedModel) -> list[tuple[str, tuple[nn.Module, ...]]]:
    """ModuleLists as long as the model is deep, the nearest to the root first."""
    layers = model.config.get_text_config().num_hidden_layers
    lists = [(path, tuple(m)) for path, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    deep = [(path, modules) for path, modules in lists if len(modules) == len(set(modules)) == layers]
    return sorted(deep, key=lambda item: item[0].count("."))


def whole_outside_blocks(model: PreTrainedModel, n_ranks: int) -> dict[str, str]:
    """What to change in a skeleton's own plan of tensor parallelism, so that what is no block is not split.

    Raises:
        InputError: its architecture has no plan, or so many processes cannot share its heads.
    """
    text = model.config.get_text_config()
    heads = text.num_attention_heads, getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    if any(number % n_ranks for number in heads):
        raise InputError(
            f"{type(model).__name__}: {n_ranks} processes cannot share {heads[0]} attention heads and {heads[1]} of "
            "keys. `source.placement: auto` spreads it over GPUs block by block. The model was not loaded."
        )
    blocks = tuple(f"{path}." for path, _ in block_lists(model))
    plan: dict[str, str] = model.tp_plan or {}
    if not any(name.startswith(blocks) for name in plan):
        raise InputError(
            f"{type(model).__name__}: transformers has no tensor-parallel plan for it. `source.placement: auto` "
            "spreads it over GPUs block by block. The model was not loaded."
        )
    return {name: "replicate" for name in plan if not name.startswith(blocks)}


def _check_single(need: Needs, device: torch.device, where: str) -> None:
    free, key = free_memory(), _key(device)
    if need.total <= free[key]:
        return
    hint = (
        f"`source.placement: auto` has {_gib(sum(free.values()))} in GPUs and memory, and then the disk"
        if need.beside(0) <= free[key]
        else "A machine with more is needed"
    )
    raise ResourceError(
        f"{where}: needs {need} on {device}, which has {_gib(free[key])} free. {hint}; `source.dtype: bfloat16` halves "
        "float32. The model was not loaded."
    )


def _spread(
    model: PreTrainedModel, blocks: tuple[nn.Module, ...], need: Needs, device: torch.device, where: str
) -> dict[str, Device]:
    free, main = free_memory(), _key(device)
    order = [key for key in free if key == "cpu" or device.type == "cuda"]
    rest = need.weights - sum(map(_size, blocks))
    if free[main] < need.beside(rest):
        raise ResourceError(
            f"{where}: what is no block needs {_gib(need.beside(rest))} on {device}, which has "
            f"{_gib(free[main])} free. The model was not loaded."
        )
    room = {key: free[key] - WORKING for key in order}
    room[main] -= rest + need.head + (0 if need.after_release else need.lens)
    placed: dict[nn.Module, Device] = {}
    for block in blocks:
        while order and room[order[0]] < _size(block):
            order.pop(0)  # and never back: a pass then goes from device to device once
        placed[block] = order[0] if order else "disk"
        if order:
            room[order[0]] -= _size(block)
    return dict(_cover(model, placed, main, ""))


def _key(device: torch.device) -> Device:
    return (device.index or 0) if device.type == "cuda" else "cpu"


def free_memory() -> dict[Device, int]:
    """Free bytes by device: the GPUs, then the CPU."""
    gpus: dict[Device, int] = {i: torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())}
    return gpus | {"cpu": int(psutil.virtual_memory().available)}


@contextmanager
def present(module: nn.Module) -> Iterator[None]:
    """While this is entered a module's weights are there, wherever accelerate keeps them."""
    with ExitStack() as held:
        for part in module.modules():
            if hasattr(part, "_hf_hook"):
                from accelerate.utils import align_module_device  # here: a model in one place does not need it

                held.enter_context(align_module_device(part))
        yield


def release(model: nn.Module) -> None:
    """Put an empty tensor in the place of every weight, wherever accelerate keeps it, whoever else has a part of it."""
    for module in model.modules():
        if hasattr(module, "_hf_hook"):
            from accelerate.hooks import remove_hook_from_module

            remove_hook_from_module(module)  # brings the module's own weights back, for a moment
        for name, weight in _own(module):
            _put(module, name, torch.empty(0, dtype=weight.dtype, device=weight.device))


def detached_copy(module: nn.Module) -> nn.Module:
    """A copy that accelerate does not know of."""
    with present(module):
        copied = copy.deepcopy(module)
    if any(hasattr(part, "_hf_hook") for part in copied.modules()):
        from accelerate.hooks import remove_hook_from_module

        remove_hook_from_module(copied, recurse=True)
    return copied


def _cover(
    module: nn.Module, placed: Mapping[nn.Module, Device], main: Device, path: str
) -> Iterator[tuple[str, Device]]:
    """The fewest paths below which all is in one place."""
    for name, child in module.named_children():
        below = f"{path}{name}"
        if child in placed:
            yield below, placed[child]
        elif any(part in placed for part in child.modules()):
            yield from _cover(child, placed, main, f"{below}.")
        else:
            yield below, main
    own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    yield from ((f"{path}{name}", main) for name in own)


def _size(module: nn.Module) -> int:
    return sum(map(_bytes, module.parameters()))


def _bytes(parameter: torch.Tensor) -> int:
    return parameter.numel() * parameter.element_size()


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
