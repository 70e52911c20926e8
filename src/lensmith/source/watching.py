"""One forward pass, watched: which module is called with which tensor, and what it returns."""

import itertools
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lensmith.process.errors import NumericError


class Call(NamedTuple):
    """A call of a module with one tensor, which returned one."""

    path: str
    module: nn.Module
    input: Tensor
    output: Tensor


@dataclass
class Trace:
    """What one forward pass showed. Tensors are copies: blocks may add to theirs in place later."""

    blocks: list[nn.Module] = field(default_factory=list)  # in the order of their calls
    block_in: dict[nn.Module, Tensor] = field(default_factory=dict)
    block_out: dict[nn.Module, Tensor] = field(default_factory=dict)
    readers: dict[nn.Module, list[nn.Module]] = field(default_factory=dict)  # children called with the block's input
    outside: list[Call] = field(default_factory=list)  # calls of modules that are in no block
    head_in: Tensor = field(default_factory=lambda: torch.empty(0))
    head_out: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    def before_block(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A block is called."""
        self.blocks.append(block)
        if (resid := hidden_in(args, kwargs)) is not None:
            self.block_in[block] = resid.clone()

    def before_child(self, block: nn.Module, child: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A child of a block is called."""
        resid = self.block_in.get(block)
        # A norm is called with one tensor and nothing else. Attention gets a mask as well, and is too big to try out.
        if len(args) == 1 and not kwargs and resid is not None and is_same(resid, args[0]):
            self.readers[block].append(child)

    def after_block(self, block: nn.Module, _args: tuple[Any, ...], output: object) -> None:
        """A block has returned."""
        if (resid := hidden_out(output)) is not None:
            self.block_out[block] = resid.clone()

    def after_outside(self, path: str, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """A module that is in no block has returned."""
        if len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            self.outside.append(Call(path, module, args[0].clone(), output.clone()))

    def after_head(self, _head: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """The head has returned."""
        self.head_in, self.head_out = args[0].clone(), output.clone()


def watch(model: PreTrainedModel, lists: list[tuple[nn.Module, ...]], unembed: nn.Module, tokens: Tensor) -> Trace:
    """Run the model on `tokens` (batch, pos); record calls of the blocks in `lists`, of their children and the head."""
    trace = Trace()
    blocks = dict.fromkeys(itertools.chain.from_iterable(lists))
    inside = {module for block in blocks for module in block.modules()}
    with ExitStack() as hooks, torch.inference_mode():
        for block in blocks:
            trace.readers[block] = []
            hooks.callback(block.register_forward_pre_hook(trace.before_block, with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(trace.after_block).remove)
            for child in block.children():
                before_child = partial(trace.before_child, block)
                hooks.callback(child.register_forward_pre_hook(before_child, with_kwargs=True).remove)
        for path, module in model.named_modules():
            if module not in inside and module is not unembed:
                hooks.callback(module.register_forward_hook(partial(trace.after_outside, path)).remove)
        hooks.callback(unembed.register_forward_hook(trace.after_head).remove)
        trace.logits = model(input_ids=tokens.to(model.device), use_cache=False).logits
    return trace


def check_finite(name: str, resid_by_layer: Iterable[tuple[int, Tensor]]) -> None:
    """Check that residuals of some layers of the model `name` are finite.

    Raises:
        NumericError: one is not. The message says at which layer, in which dtype, and which dtype to use.
    """
    for layer, resid in resid_by_layer:
        if not bool(resid.isfinite().all()):
            dtype = str(resid.dtype).removeprefix("torch.")
            is_half = resid.dtype == torch.float16
            remedy = " It ends at 65504: set source.dtype to bfloat16 or float32." if is_half else ""
            raise NumericError(
                f"{name}: a residual of layer {layer} is not finite in {dtype}.{remedy} No lens was made."
            )


def hidden_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The residual stream that a block is called with: its first float tensor of (batch, pos, d_model)."""
    return next((value for value in (*args, *kwargs.values()) if _is_stream(value)), None)


def hidden_out(output: object) -> Tensor | None:
    """The residual stream that a block returns, alone or first in a tuple."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    return first if _is_stream(first) else None


def _is_stream(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.dim() == 3 and value.is_floating_point()


def is_same(earlier: object, later: object) -> bool:
    """Whether `later` is `earlier`, rounded at most to its own dtype: Mamba keeps its residuals in fp32."""
    return (
        isinstance(earlier, Tensor)
        and isinstance(later, Tensor)
        and earlier.shape == later.shape
        and torch.equal(earlier.to(later.device, later.dtype), later)  # blocks may be on different devices
    )
