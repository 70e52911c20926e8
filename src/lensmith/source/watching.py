"""One forward pass, watched: which module is called with which tensor, and what it returns."""

import itertools
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass
class Trace:
    """What one forward pass showed. Tensors are copies: blocks may add to theirs in place later."""

    calls: list[nn.Module] = field(default_factory=list)  # blocks, in the order of their calls
    block_in: dict[nn.Module, Tensor] = field(default_factory=dict)
    block_out: dict[nn.Module, Tensor] = field(default_factory=dict)
    readers: dict[nn.Module, list[nn.Module]] = field(default_factory=dict)  # children called with the block's input
    outside: list[tuple[str, nn.Module, Tensor, Tensor]] = field(default_factory=list)  # name, module, input, output
    head_in: Tensor = field(default_factory=lambda: torch.empty(0))
    head_out: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


def watch(model: PreTrainedModel, lists: list[tuple[nn.Module, ...]], unembed: nn.Module, tokens: Tensor) -> Trace:
    """Run the model on `tokens` (batch, pos) and keep what the blocks of `lists`, their children and the head saw."""
    trace = Trace()
    inner = {module for blocks in lists for block in blocks for module in block.modules()}
    with ExitStack() as hooks, torch.inference_mode():
        for block in dict.fromkeys(itertools.chain.from_iterable(lists)):
            _watch_block(trace, block, hooks)
        for path, module in model.named_modules():
            if module not in inner and module is not unembed:
                _watch_outside(trace, path, module, hooks)
        _watch_head(trace, unembed, hooks)
        trace.logits = model(input_ids=tokens.to(model.device), use_cache=False).logits
    return trace


def _watch_block(trace: Trace, block: nn.Module, hooks: ExitStack) -> None:
    trace.readers[block] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        trace.calls.append(module)
        if (resid := hidden_in(args, kwargs)) is not None:
            trace.block_in[module] = resid.clone()

    def after(module: nn.Module, _args: tuple[Any, ...], output: object) -> None:
        if (resid := hidden_out(output)) is not None:
            trace.block_out[module] = resid.clone()

    def child_before(child: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        resid = trace.block_in.get(block)
        # A norm is called with one tensor and nothing else. Attention gets a mask as well, and is too big to try out.
        if len(args) == 1 and not kwargs and resid is not None and same(resid, args[0]):
            trace.readers[block].append(child)

    hooks.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
    hooks.callback(block.register_forward_hook(after).remove)
    for child in block.children():
        hooks.callback(child.register_forward_pre_hook(child_before, with_kwargs=True).remove)


def _watch_outside(trace: Trace, path: str, module: nn.Module, hooks: ExitStack) -> None:
    def after(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            trace.outside.append((path, module, args[0].clone(), output.clone()))

    hooks.callback(module.register_forward_hook(after).remove)


def _watch_head(trace: Trace, unembed: nn.Module, hooks: ExitStack) -> None:
    def after(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        trace.head_in, trace.head_out = args[0].clone(), output.clone()

    hooks.callback(unembed.register_forward_hook(after).remove)


def hidden_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The residual stream that a block is called with: its first float tensor of (batch, pos, d_model)."""
    return next((value for value in (*args, *kwargs.values()) if _is_stream(value)), None)


def hidden_out(output: object) -> Tensor | None:
    """The residual stream that a block returns, alone or first in a tuple."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    return first if _is_stream(first) else None


def _is_stream(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.dim() == 3 and value.is_floating_point()


def same(earlier: object, later: object) -> bool:
    """Whether `later` is `earlier`, rounded at most to its own dtype: Mamba keeps its residuals in fp32."""
    return (
        isinstance(earlier, Tensor)
        and isinstance(later, Tensor)
        and earlier.shape == later.shape
        and torch.equal(earlier.to(later.device, later.dtype), later)  # blocks may be on different devices
    )
