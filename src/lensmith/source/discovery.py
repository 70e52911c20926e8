"""Finds the blocks, norms and head of a causal LM by watching one forward pass.

The class of a model and the names of its modules decide nothing: OPT's blocks each hold a `final_layer_norm`,
StableLM's `norm` is a LayerNorm. A module is known by the tensor that it is called with and the one that it returns.

    blocks        the ModuleList of num_hidden_layers modules, called in order, nearest to the root
    final norm    reads the last block's output and returns the head's input
    input norms   children of a block that read exactly the block's input
    head          get_output_embeddings(), a linear map
    g             of the scales and caps in the configuration, what maps the head's output to the model's logits
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel

from lensmith.process.errors import InputError
from lensmith.source import logit_transform
from lensmith.source.configuration import is_quantised
from lensmith.source.head import Head, Transform
from lensmith.source.placement import detached_copy
from lensmith.source.skeleton import block_lists
from lensmith.source.watching import Call, Trace, check_finite, is_same, watch

REFUSED = "No lens was made: the head could not be identified."


@dataclass(frozen=True)
class Anatomy:
    """The modules of a model that a lens needs."""

    body: nn.Module  # the outermost module above the blocks that does not hold the head
    blocks: tuple[nn.Module, ...]
    final_norm: nn.Module
    final_norm_name: str  # its path
    input_norms: tuple[tuple[nn.Module, ...], ...]  # of each block, in the order of their calls
    unembed: nn.Module  # the linear map that holds W_U
    transform: Transform
    tried: tuple[str, ...]  # the forms of g that were compared

    @property
    def d_model(self) -> int:
        return int(self.unembed.weight.shape[1])  # type: ignore[index]

    @property
    def device(self) -> torch.device:
        """The head's; blocks may be on others."""
        return self.unembed.weight.device  # type: ignore[return-value]

    @property
    def norm_note(self) -> str:
        """What `next_input` means in this model, in words; blocks that are built alike share a sentence."""
        notes: dict[str, list[int]] = {}
        for index, (block, norms) in enumerate(zip(self.blocks, self.input_norms, strict=True)):
            names = [next(name for name, child in block.named_children() if child is norm) for norm in norms]
            if not names:
                note = "no norm of their input, the final norm stands in"
            elif len(names) == 1:
                note = f"input norm {names[0]}"
            else:
                note = f"input norms {', '.join(names)}, the first is taken"
            notes.setdefault(note, []).append(index)
        if len(notes) == 1:
            return f"next_input: all blocks: {next(iter(notes))}"
        return "next_input: " + "; ".join(f"blocks {', '.join(map(str, ids))}: {note}" for note, ids in notes.items())

    def head(self) -> Head:
        """Frozen fp32 copies of the norms and the unembedding."""
        weight = self.unembed.weight.detach().to(torch.float32, copy=True)  # type: ignore[operator]
        bias = getattr(self.unembed, "bias", None)
        return Head(
            W_U=weight,
            bias=None if bias is None else bias.detach().to(torch.float32, copy=True),
            transform=self.transform,
            final_norm=fp32_copy(self.final_norm),
            input_norms=tuple(fp32_copy(norms[0]) if norms else None for norms in self.input_norms),
            norm_note=self.norm_note,
        )


def fp32_copy(module: nn.Module) -> nn.Module:
    """A frozen copy of a module in fp32."""
    return detached_copy(module).float().eval().requires_grad_(False)


def dissect(model: PreTrainedModel, tokens: Tensor) -> Anatomy:
    """The anatomy of a model, from one forward pass over `tokens` (batch, pos).

    Raises:
        InputError: a part was not found or is of another form; the message says which and what the pass showed.
        NumericError: a residual is not finite.
    """
    name = type(model).__name__
    unembed = model.get_output_embeddings()
    if not isinstance(getattr(unembed, "weight", None), Tensor) or unembed.weight.dim() != 2:
        raise InputError(f"{name}: its output embeddings are {type(unembed).__name__}, not a linear map. {REFUSED}")
    if not unembed.weight.is_floating_point() or (
        is_quantised(model.config) and is_traceable_wrapper_subclass(unembed.weight)
    ):
        raise InputError(
            f"{name}: its output embeddings are quantised ({type(unembed.weight).__name__}), and a lens is fit through "
            f"them. Take a checkpoint whose output embeddings are not quantised, as in most. {REFUSED}"
        )
    lists = block_lists(model)
    trace = watch(model, [blocks for _, blocks in lists], unembed, tokens)
    reasons = []
    for path, blocks in lists:
        outputs = ((layer, trace.block_out.get(block)) for layer, block in enumerate(blocks, 1))
        check_finite(name, ((layer, resid) for layer, resid in outputs if resid is not None))
        final_norm = _final_norm(trace, path, blocks)
        if isinstance(final_norm, str):
            reasons.append(final_norm)
            continue
        parents = [module for name, module in model.named_modules() if name and path.startswith(f"{name}.")]
        width = trace.head_in.shape[-1]
        input_norms = tuple(tuple(n for n in trace.readers[block] if is_norm_like(n, width)) for block in blocks)
        transform, tried = logit_transform.nearest(model, trace.head_out, trace.logits)
        return Anatomy(
            body=next((parent for parent in parents if unembed not in parent.modules()), model),
            blocks=blocks,
            final_norm=final_norm.module,
            final_norm_name=final_norm.path,
            input_norms=input_norms,
            unembed=unembed,
            transform=transform,
            tried=tried,
        )
    n_blocks = model.config.get_text_config().num_hidden_layers
    problem = "; ".join(reasons) or f"no ModuleList of num_hidden_layers ({n_blocks}) modules"
    raise InputError(f"{name}: {problem}. {REFUSED}")


def _final_norm(trace: Trace, path: str, blocks: tuple[nn.Module, ...]) -> Call | str:
    """The call of the final norm after these blocks, or the reason why there is none."""
    if [module for module in trace.blocks if module in blocks] != list(blocks):
        return f"the modules of {path} are not called once each, in order"
    if any(block not in trace.block_in or block not in trace.block_out for block in blocks):
        return f"the modules of {path} do not map one (batch, pos, d_model) tensor to another"
    last, last_path = trace.block_out[blocks[-1]], f"{path}[{len(blocks) - 1}]"
    if is_same(last, trace.head_in):
        return f"there is no final norm: the head reads the output of {last_path} itself"
    readers = [call for call in trace.outside if is_same(last, call.input)]
    for call in readers:
        if is_same(call.output, trace.head_in) and is_norm_like(call.module, last.shape[-1]):
            return call
    between = ", ".join(f"{call.path} ({tuple(call.input.shape)} to {tuple(call.output.shape)})" for call in readers)
    return (
        f"no norm stands between the output of {last_path} {tuple(last.shape)} and the head's input "
        f"{tuple(trace.head_in.shape)}; that output is read by {between or 'no module of its own'}"
    )


def is_norm_like(module: nn.Module, width: int) -> bool:
    """Whether a module returns the same for a vector ten times as long: a norm does, other layers do not."""
    copied = fp32_copy(module)
    # Of unit scale: longer ones would saturate a softmax, shorter ones would show a norm's epsilon.
    probe = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    probe = probe.to(next((p.device for p in copied.parameters()), "cpu"))
    try:
        with torch.inference_mode():
            once, tenfold = copied(probe), copied(10 * probe)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False  # not a function of one vector
    return (
        isinstance(once, Tensor)
        and once.shape == probe.shape
        and bool(once.abs().max() > 0)
        and torch.allclose(once, tenfold, rtol=1e-3, atol=1e-3 * float(once.abs().max()))
    )


def n_embeddings(model: PreTrainedModel) -> int:
    """The number of ids that the model can read."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight.shape[0]
