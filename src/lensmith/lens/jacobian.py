"""Jacobian lenses: J_l, the mean of dh_final/dh_l over positions of text, reads a layer as g(N(J_l h_l) W_U + b).

A tuned lens reads what the model is about to say, a Jacobian lens what its residual stream holds. Here h_l is
resid_post[l - 1] and h_final that of the last block, before the final norm.

With v independent signs at every position and dimension of h_final, and g_l the gradient of <v, h_final> at h_l,

    E[v[p] g_l[p]^T] = dh_final[p] / dh_l[p]        as E[v[p] v[q]^T] is 1 for q = p and 0 for every other position

so one backward pass gives a sample at every position and layer (Hutchinson). What other positions add is noise of mean
zero, the more the earlier the layer. `OwnPosition` keeps it out of the gradient: attention then reads other positions
as constants. A few positions with long gradients would bring most of the rest: a gradient longer than the median of
its sequence is shortened to it, so the mean weights positions.

With one sign vector for all positions of a sequence, and attention and gradients as they are, the mean is that of the
reference estimator (`future_sum`): the sum over q >= p of dh_final[q] / dh_l[p].
"""

import sys
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lensmith.lens import fitted
from lensmith.lens.checkpoint import EVERY
from lensmith.lens.fitted import Fit
from lensmith.lens.lens import Lens
from lensmith.lens.provenance import JacobianRecord
from lensmith.process import environment, stopping
from lensmith.process.draws import Stream
from lensmith.process.errors import InputError, IntegrityError, NumericError, explained, first_line
from lensmith.process.progress import Progress
from lensmith.process.stopping import Interrupted
from lensmith.settings.sections import FitParams
from lensmith.source import ranks, tensor_file
from lensmith.source.backbone import Backbone
from lensmith.source.head import Head
from lensmith.source.residuals import Residuals
from lensmith.source.watching import hidden_in, hidden_out

LEFT_OUT = 16  # first positions of a sequence: models park large residuals there, which no other position has
DRAWS = 4  # of signs for one forward pass: another draw costs one backward pass and no forward pass
CHECK_SEQS = 16  # between two comparisons of the halves
SUMS = "sums.safetensors"
UNMADE = "No lens was made."


@dataclass
class Estimate:
    """Sums over the even and the odd sequences so far, of J_l^T for the layers 1..L - 1."""

    halves: Tensor  # (2, L - 1, d_model, d_model), fp32
    seqs: int
    seq_len: int

    @classmethod
    def begin(cls, backbone: Backbone, seq_len: int, work: Path | None) -> "Estimate":
        """The sums of the checkpoint in `work`, or none."""
        n, d = backbone.n_layers - 1, backbone.d_model
        if work is not None and (work / SUMS).exists():
            try:
                tensors, facts = tensor_file.read(work / SUMS)
            except IntegrityError as error:
                print(f"{error}. The estimate begins anew.", file=sys.stderr)
            else:
                return cls(tensors["halves"].to(backbone.device), facts["seqs"], seq_len)
        return cls(torch.zeros(2, n, d, d, device=backbone.device), 0, seq_len)

    def save(self, work: Path) -> None:
        """Write the checkpoint. Raises ResourceError where the disk is full."""
        tensor_file.write(work / SUMS, {"halves": self.halves.cpu()}, {"seqs": self.seqs})

    @property
    def positions(self) -> int:
        """Positions that were read."""
        return self.seqs * (self.seq_len - LEFT_OUT)

    def agreement(self) -> tuple[float, ...]:
        """Cosine between the two halves, by layer."""
        even, odd = self.halves.flatten(2)
        return tuple(torch.cosine_similarity(even, odd, dim=-1).tolist())

    def is_enough(self, settings: FitParams) -> bool:
        """Whether both halves agree as the settings ask, at every CHECK_SEQS sequences; true without a layer to map."""
        if not self.halves.numel():
            return True
        is_due = self.seqs > 0 and self.seqs % CHECK_SEQS == 0
        return is_due and min(self.agreement()) >= settings.jacobian_agreement

    def lens(self) -> Lens:
        """The lens, its maps in float16.

        Raises:
            NumericError: an entry is not finite in float16.
        """
        mean = (self.halves.sum(0) / (self.positions * DRAWS)).half()
        if not mean.isfinite().all():
            layer = int(mean.isfinite().flatten(1).all(1).logical_not().nonzero()[0]) + 1
            raise NumericError(f"fit jacobian: the map of layer {layer} is not finite in float16. {UNMADE}")
        return Lens.of_maps("jacobian", mean, scale=0.0)

    def fit(self, head: Head, held_out: Residuals, settings: FitParams) -> Fit:
        """The lens with its validation. Raises as `lens` and `fitted.measured`."""
        record = JacobianRecord(
            derivative=settings.jacobian,
            sequences=self.seqs,
            tokens=self.seqs * self.seq_len,
            positions=self.positions,
            draws=DRAWS,
            agreement=self.agreement(),
        )
        return fitted.measured(head, self.lens(), held_out, settings, record)


def estimate(backbone: Backbone, tokens: NDArray[np.uint32], settings: FitParams, work: Path | None = None) -> Estimate:
    """The sums of as many training sequences as the settings ask for, or until both halves agree.

    Args:
        tokens: (n_seqs, seq_len), packed.
        work: folder of the checkpoint of the same estimate, which goes on from there.

    Raises:
        InputError: the model has no backward pass, or sequences are too short.
        NumericError: a gradient is not finite.
        ResourceError: a checkpoint does not fit on the disk, or a backward pass into memory.
        Interrupted: TERM or INT came; there is a checkpoint of the last sequence.
    """
    n_seqs, seq_len = tokens.shape
    if seq_len <= LEFT_OUT:
        raise InputError(
            f"fit.kind jacobian leaves out the first {LEFT_OUT} positions; corpus.seq_len is {seq_len}. {UNMADE}"
        )
    if ranks.size() > 1:
        raise InputError(f"fit.kind jacobian needs a backward pass, which source.placement tp has not. {UNMADE}")
    order = Stream(settings.seed, "jacobian-seqs").permutation(n_seqs, step=0)[: settings.jacobian_seqs]
    every = environment.number(environment.CHECKPOINT_SECONDS, "seconds", EVERY, "Nothing was fit.") or 0.0
    so_far, saved = Estimate.begin(backbone, seq_len, work), monotonic()
    backbone.model.requires_grad_(False)
    with Progress("fit jacobian", len(order), "sequence", done=so_far.seqs) as progress, stopping.deferred() as stop:
        # A question to the sums alone: an estimate that goes on from its last checkpoint ends where it ended.
        while so_far.seqs < len(order) and not so_far.is_enough(settings):
            seq = int(order[so_far.seqs])
            add(so_far, backbone, torch.from_numpy(tokens[seq].astype(np.int64)), seq, settings)
            progress.advance(tokens=seq_len)
            if work is not None and (stop.signal is not None or monotonic() - saved >= every):
                so_far.save(work)
                saved = monotonic()
            if stop.signal is not None:
                fate = "its checkpoint is kept. `dvc repro` goes on from there." if work else "not kept."
                raise Interrupted(stop.signal, f"fit stopped after sequence {so_far.seqs} of {len(order)}; {fate}")
    return so_far


def add(so_far: Estimate, backbone: Backbone, tokens: Tensor, seq: int, settings: FitParams) -> None:
    """Add one sequence's samples: tokens (seq_len,), `seq` its index in the corpus, which decides its signs."""
    is_sum = settings.jacobian == "future_sum"
    half = so_far.halves[so_far.seqs % 2]
    stream, shape = Stream(settings.seed, "jacobian-signs"), (len(tokens), backbone.d_model)
    try:
        resid = residuals(backbone, tokens[None], own_position=not is_sum)
        for draw in range(DRAWS):
            v = signs(stream, (1 if is_sum else shape[0], shape[1]), step=seq * DRAWS + draw).to(resid[-1])
            v = v.expand(shape).clone()
            v[:LEFT_OUT] = 0
            gradients = torch.autograd.grad(resid[-1], resid[:-1], v[None], retain_graph=draw < DRAWS - 1)
            for total, gradient in zip(half, gradients, strict=True):
                g = gradient[0, LEFT_OUT:].to(total)
                total.addmm_((g if is_sum else shortened(g)).T, v[LEFT_OUT:].to(total))
    except RuntimeError as error:
        no_backward = f"{type(backbone.model).__name__}: its backward pass fails ({first_line(error)}). {UNMADE}"
        raise explained(error) or InputError(no_backward) from error
    so_far.seqs += 1


def shortened(gradients: Tensor) -> Tensor:
    """Gradients (pos, d_model), none longer than their median length."""
    length: Tensor = torch.linalg.vector_norm(gradients, dim=-1, keepdim=True)
    return gradients * (length.median() / length.clamp(min=torch.finfo(length.dtype).tiny)).clamp(max=1)


def signs(stream: Stream, shape: tuple[int, int], step: int) -> Tensor:
    """Signs of this shape, float32."""
    size = shape[0] * shape[1]
    bits = np.unpackbits(stream.words(-(-size // 64), step).astype("<u8").view(np.uint8))[:size]
    return torch.from_numpy(bits.astype(np.float32) * 2 - 1).view(shape)


def residuals(backbone: Backbone, tokens: Tensor, *, own_position: bool) -> list[Tensor]:
    """resid_post of every block for tokens (batch, pos), each with the graph that leads from it to the last.

    Args:
        own_position: whether attention reads other positions as constants.

    Returns:
        L tensors (batch, pos, d_model).
    """
    blocks, resid = backbone.anatomy.blocks, []

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (embedded := hidden_in(args, kwargs)) is not None:
            embedded.requires_grad_()  # a graph begins here: weights have no gradient

    def after(_module: nn.Module, _args: tuple[Any, ...], output: object) -> None:
        if (after_block := hidden_out(output)) is not None:
            resid.append(after_block)

    with ExitStack() as hooks, torch.enable_grad(), OwnPosition() if own_position else nullcontext():
        hooks.callback(blocks[0].register_forward_pre_hook(before, with_kwargs=True).remove)
        for block in blocks:
            hooks.callback(block.register_forward_hook(after).remove)
        backbone.anatomy.body(input_ids=tokens.to(backbone.device), use_cache=False)
    return resid


class OwnPosition(TorchFunctionMode):
    """Within it, attention has the same values, and gradients with respect to keys and values of a position reach only
    what that position itself reads.

    Each key stands twice: as a constant for other positions, and as it is for its own.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return own_position_attention(*args, **kwargs)


def own_position_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """`scaled_dot_product_attention` as `OwnPosition` has it."""
    shape = query.shape[-2], key.shape[-2]
    own = torch.eye(*shape, dtype=torch.bool, device=query.device)
    if attn_mask is None:
        every = torch.ones_like(own)
        attn_mask = every.tril() if is_causal else every
    if attn_mask.dtype == torch.bool:
        parts = [attn_mask & ~own, attn_mask & own]
    else:
        parts = [attn_mask.masked_fill(own, -torch.inf), attn_mask.masked_fill(~own, -torch.inf)]
    keys, values = (torch.cat([tensor.detach(), tensor], -2) for tensor in (key, value))
    return nn.functional.scaled_dot_product_attention(query, keys, values, torch.cat(parts, -1), dropout_p, **options)
