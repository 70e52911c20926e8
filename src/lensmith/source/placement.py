"""Where a model's weights go: on one device, over several, or split over processes; and whether they fit.

single   all on `source.device`
auto     blocks fill the GPUs in order, then the CPU's memory, then the disk (accelerate). Everything else, the head
         included, stays on the first device, where the lens is fit. A block off the GPUs is moved to one to run
tp       each block is split over processes (`ranks`), one a GPU; everything else is whole in each process

Memory is estimated from the skeleton, before a weight is read: the weights in their dtype, a copy of W_U in fp32, and
what the caller's lens needs.
"""

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import psutil
import torch
from torch import nn
from transformers import PreTrainedModel

from lensmith.process import amounts
from lensmith.process.amounts import GIB
from lensmith.process.environment import RANKS
from lensmith.process.errors import InputError, ResourceError
from lensmith.settings.sections import Placement
from lensmith.source.configuration import NOT_LOADED
from lensmith.source.skeleton import Skeleton, block_lists

WORKING = 2 * GIB  # activations of a pass and chunks of logits, on each device that runs blocks

Device = int | str  # a GPU's index, "cpu" or "disk", as accelerate names them


@dataclass(frozen=True)
class LensMemory:
    """Memory that fitting a lens takes on the device of the head."""

    size: Callable[[int, int], int]  # bytes for a lens of so many blocks of so many dimensions
    after_release: bool = False  # allocated once the weights are freed


NO_LENS = LensMemory(lambda _n_blocks, _d_model: 0)  # of a caller that fits no lens


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes on the device of the head."""

    weights: int
    head: int  # W_U in fp32
    lens: int
    after_release: bool = False  # the lens is trained once the weights are freed

    @property
    def total(self) -> int:
        return self.peak(self.weights)

    def peak(self, weights: int) -> int:
        """The most at any time, where so many bytes of the weights are on that device."""
        return self.head + WORKING + (max(weights, self.lens) if self.after_release else weights + self.lens)

    def __str__(self) -> str:
        weights, lens, head, working = map(amounts.size, (self.weights, self.lens, self.head, WORKING))
        word = ", then " if self.after_release else ", "
        total = amounts.size(self.total)
        return f"{total} ({weights} weights{word}{lens} lens, {head} head in fp32, {working} working memory)"


@dataclass(frozen=True)
class Layout:
    """Where the parts of a model go."""

    device_map: dict[str, Device]  # as `from_pretrained` takes it
    n_ranks: int = 1  # processes that each load a part of every block
    tp_plan: dict[str, str] | None = None  # what changes in the model's own plan of tensor parallelism


def place(skeleton: Skeleton, placement: Placement, lens_memory: LensMemory) -> Layout:
    """The layout of a model that `source.placement` asks for.

    Raises:
        ResourceError: the model does not fit; with sizes, and the setting that would help.
        InputError: the model cannot be split over that many processes.
    """
    need = needs(skeleton, lens_memory)
    lists = block_lists(skeleton.model)
    if placement == "auto" and lists:
        return Layout(_spread(skeleton, lists[0][1], need))
    main = _key(skeleton.device)
    layout = Layout({"": main})
    if placement == "tp":
        n_ranks = n_processes(skeleton.device)
        layout = Layout({}, n_ranks, _whole_outside_blocks(skeleton.model, n_ranks))
        split = sum(map(_size, lists[0][1]))
        rest = need.weights - split
        # On a CPU the processes share one memory; each GPU holds its part of the blocks and the rest.
        in_cpu, in_gpu = split + n_ranks * rest, split // n_ranks + rest
        need = replace(need, weights=in_cpu if main == "cpu" else in_gpu)
    free = free_memory()
    if need.total <= free[main]:
        return layout
    hint = (
        f"`source.placement: auto` has {amounts.size(sum(free.values()))} in GPUs and memory, and then the disk"
        if need.peak(0) <= free[main]
        else "It needs a machine with more memory"
    )
    raise ResourceError(
        f"{skeleton.name}: needs {need} on {skeleton.device}, which has {amounts.size(free[main])} free. {hint}; "
        f"`source.dtype: bfloat16` halves float32. {NOT_LOADED}"
    )


def needs(skeleton: Skeleton, lens_memory: LensMemory) -> MemoryNeeds:
    """The memory that a model and a lens need on one device."""
    model = skeleton.model
    unembed = model.get_output_embeddings()
    text = model.config.get_text_config()
    return MemoryNeeds(
        weights=_size(model),  # a tied weight is one parameter
        head=0 if unembed is None else 4 * unembed.weight.numel(),
        lens=lens_memory.size(text.num_hidden_layers, text.hidden_size),
        after_release=lens_memory.after_release,
    )


def n_processes(device: torch.device) -> int:
    """Processes that are to share a model: LENSMITH_RANKS, or one a GPU.

    Raises:
        InputError: fewer than two, or more than GPUs.
    """
    gpus = torch.cuda.device_count() if device.type == "cuda" else None
    text = os.environ.get(RANKS, "").strip() or str(gpus or 0)
    n = int(text) if text.isdecimal() else 0
    if 2 <= n <= (gpus or n):
        return n
    available = f"there are {gpus} GPUs" if gpus is not None else f"on a CPU {RANKS} must say how many processes"
    raise InputError(
        f"source.placement: tp shares a model between 2 or more processes, but {RANKS} is {text!r} and {available}. "
        f"{NOT_LOADED}"
    )


def free_memory() -> dict[Device, int]:
    """Free bytes by device: the GPUs, then the CPU."""
    gpus: dict[Device, int] = {i: torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())}
    return gpus | {"cpu": int(psutil.virtual_memory().available)}


def _whole_outside_blocks(model: PreTrainedModel, n_ranks: int) -> dict[str, str]:
    """Changes to the model's own plan of tensor parallelism that leave everything outside its blocks whole."""
    text = model.config.get_text_config()
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    other_way = f"`source.placement: auto` spreads it over GPUs block by block. {NOT_LOADED}"
    if heads % n_ranks or kv_heads % n_ranks:
        raise InputError(
            f"{type(model).__name__}: {n_ranks} processes cannot share {heads} attention heads and {kv_heads} "
            f"key-value heads. {other_way}"
        )
    blocks = tuple(f"{path}." for path, _ in block_lists(model))
    plan: dict[str, str] = model.tp_plan or {}
    if not any(name.startswith(blocks) for name in plan):
        raise InputError(
            f"{type(model).__name__}: transformers has no tensor-parallel plan for this architecture. {other_way}"
        )
    return {name: "replicate" for name in plan if not name.startswith(blocks)}


def _spread(skeleton: Skeleton, blocks: tuple[nn.Module, ...], need: MemoryNeeds) -> dict[str, Device]:
    """Blocks fill the devices in order; everything else is on the skeleton's device."""
    free, main = free_memory(), _key(skeleton.device)
    rest = need.weights - sum(map(_size, blocks))
    if free[main] < need.peak(rest):
        raise ResourceError(
            f"{skeleton.name}: the parts outside its blocks need {amounts.size(need.peak(rest))} on "
            f"{skeleton.device}, which has {amounts.size(free[main])} free. {NOT_LOADED}"
        )
    order = [key for key in free if key == "cpu" or skeleton.device.type == "cuda"]
    room = {key: free[key] - WORKING for key in order}
    room[main] -= rest + need.head + (0 if need.after_release else need.lens)
    devices: dict[nn.Module, Device] = {}
    for block in blocks:
        while order and room[order[0]] < _size(block):
            order.pop(0)  # a full device takes no later block: a pass then visits each device once
        devices[block] = order[0] if order else "disk"
        if order:
            room[order[0]] -= _size(block)
    return dict(_shortest_paths(skeleton.model, devices, main, ""))


def _shortest_paths(
    module: nn.Module, devices: Mapping[nn.Module, Device], main: Device, path: str
) -> Iterator[tuple[str, Device]]:
    """The fewest paths below which everything is on one device."""
    for name, child in module.named_children():
        if child in devices:
            yield f"{path}{name}", devices[child]
        elif any(part in devices for part in child.modules()):
            yield from _shortest_paths(child, devices, main, f"{path}{name}.")
        else:
            yield f"{path}{name}", main
    tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    yield from ((f"{path}{name}", main) for name in tensors)


def _key(device: torch.device) -> Device:
    return (device.index or 0) if device.type == "cuda" else "cpu"


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


# --- weights that accelerate keeps off their device


@contextmanager
def present(module: nn.Module) -> Iterator[None]:
    """Inside this context the weights of a module are in memory, wherever accelerate keeps them."""
    with ExitStack() as stack:
        for part in module.modules():
            if hasattr(part, "_hf_hook"):
                from accelerate.utils import align_module_device  # here: a model on one device does not need it

                stack.enter_context(align_module_device(part))
        yield


def release(model: nn.Module) -> None:
    """Replace every weight of a model by an empty tensor, wherever accelerate keeps it."""
    for module in model.modules():
        if hasattr(module, "_hf_hook"):
            from accelerate.hooks import remove_hook_from_module

            remove_hook_from_module(module)  # brings the module's own weights back, for a moment
        for name, weight in list(module.named_parameters(recurse=False)):
            empty = torch.empty(0, dtype=weight.dtype, device=weight.device)
            module.register_parameter(name, nn.Parameter(empty, requires_grad=False))


def detached_copy(module: nn.Module) -> nn.Module:
    """A copy of a module without accelerate's hooks."""
    with present(module):
        copied = copy.deepcopy(module)
    if any(hasattr(part, "_hf_hook") for part in copied.modules()):
        from accelerate.hooks import remove_hook_from_module

        remove_hook_from_module(copied, recurse=True)
    return copied
