"""A frozen causal LM seen as blocks, norms and a head, proven to be read as the model reads itself.

Block l of L ends in resid_post[l], (batch, pos, d_model); block 0 begins with the embedding. `capture` shows that
stream at some positions, `head` decodes it, and `proof` says how near the head on the last block comes to the model.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lensmith.process.errors import InputError, NumericError
from lensmith.settings.sections import SourceParams
from lensmith.source import loading, placement, ranks
from lensmith.source.discovery import REFUSED, Anatomy, dissect, embedding_rows, max_length
from lensmith.source.head import Head, NormKind, Transform
from lensmith.source.placement import NO_LENS, LensMemory
from lensmith.source.proof import Proof, proof_tokens, prove
from lensmith.source.watching import hidden_in, hidden_out

if TYPE_CHECKING:
    from lensmith.hub.models import ModelPin

__all__ = ["Backbone", "Head", "NormKind", "Proof", "Transform"]


@dataclass(frozen=True)
class Backbone:
    """A causal LM in eval mode; its weights are never changed."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    anatomy: Anatomy
    head: Head
    proof: Proof

    @classmethod
    def load(cls, source: SourceParams, pin: "ModelPin", *, lens_memory: LensMemory = NO_LENS) -> Self:
        """The model of `pin`, from files that were checked against it.

        `lens_memory`, what the caller holds for its lens, must fit too.

        Raises:
            InputError: the model cannot be used: unknown architecture, no safetensors, no final norm,
                a tokenizer larger than the embedding.
            IntegrityError: files are missing, changed or broken, or a weight is not in them.
            NumericError: a weight is not finite, or the model did not pass its proof.
            ResourceError: the model does not fit where `source.placement` puts it.
        """
        from lensmith.hub.models import fetch_model  # here, so that a model in memory needs no hub client

        folder = fetch_model(pin)
        where = pin.place
        trusted = source.trust_remote_code  # never what a pin says: pins come with other people's lenses
        config = loading.read_config(folder, where, trusted=trusted)
        device = loading.pick_device(source.device)
        dtype = loading.pick_dtype(source.dtype, config, device, trusted=trusted)
        frame = placement.skeleton(config, dtype, trusted=trusted)
        if placement.is_quantised(config):
            placement.pack(frame, sum((folder / n).stat().st_size for n in pin.files if n.endswith(".safetensors")))
        n_ranks = ranks.asked(device) if source.placement == "tp" else 1
        device_map = placement.device_map(frame, source.placement, device, where, lens_memory, n_ranks=n_ranks)
        if n_ranks > 1:
            model = ranks.load(ranks.Spec.of(folder, where, dtype, device, n_ranks, trusted=trusted))
        else:
            model = loading.load_model(folder, where, dtype, device_map, trusted=trusted)
        tokenizer = loading.load_tokenizer(folder, where, config, embedding_rows(model), trusted=trusted)
        if n_ranks == 1:
            loading.check_finite(model, where)
        return cls.from_model(model, tokenizer)

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """A model in memory: find its parts and prove them.

        Raises:
            InputError: a part was not found.
            NumericError: the proof failed.
        """
        model = (model if dtype is None else model.to(dtype)).eval()  # type: ignore[arg-type]
        tokens = proof_tokens(model, tokenizer)
        anatomy = dissect(model, tokens)
        head = anatomy.head()
        return cls(model, tokenizer, anatomy, head, _prove(model, anatomy, head, tokens))

    @property
    def n_layers(self) -> int:
        return len(self.anatomy.blocks)

    @property
    def d_model(self) -> int:
        return self.head.W_U.shape[1]

    @property
    def d_vocab(self) -> int:
        return self.head.W_U.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        return self.head.W_U.device

    def capture(self, tokens: Tensor, positions: Tensor, *, attention_mask: Tensor | None = None) -> Tensor:
        """The residual stream at some positions, in one forward pass without the head.

        Args:
            tokens: (batch, pos) of ids below d_vocab.
            positions: (batch, n) of indices into pos, in any order.
            attention_mask: (batch, pos), 1 for text and 0 for the padding to its right.

        Returns:
            (batch, n, n_layers + 1, d_model) in the model's dtype: row 0 is the input of block 0, row 1 + l is
            resid_post[l].

        Raises:
            InputError: ids or positions out of range, sequences longer than the model reads, padding on the left.
        """
        _check_batch(self.model, self.d_vocab, tokens, positions, attention_mask)
        return capture(self.model, self.anatomy, tokens, positions, attention_mask)

    def logits(self, tokens: Tensor) -> Tensor:
        """The model's own logits, (batch, pos, d_vocab) in fp32. For proofs and tests: it holds all of them."""
        with torch.inference_mode():
            output: Tensor = self.model(input_ids=tokens.to(self.device), use_cache=False).logits
        return output.float()

    def release(self) -> None:
        """Let go of the weights, where nothing more is to be captured. The head and the model's settings stay."""
        ranks.release()
        placement.release(self.model)

    def prove(self) -> Proof:
        """Measure again that the lens at the last block is the model, as it is now.

        Raises:
            NumericError: it is not.
        """
        return _prove(self.model, self.anatomy, self.head, proof_tokens(self.model, self.tokenizer))


def capture(
    model: PreTrainedModel, anatomy: Anatomy, tokens: Tensor, positions: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """`Backbone.capture` without its checks."""
    device, n_rows = anatomy.device, len(anatomy.blocks) + 1
    sequence = torch.arange(len(tokens)).unsqueeze(1)
    # Made outside inference_mode, whose tensors no backward pass may read: a lens is trained on these.
    taken = torch.empty(*positions.shape, n_rows, anatomy.d_model, dtype=model.dtype, device=device)
    filled: list[int] = []
    row_of = {block: row for row, block in enumerate(anatomy.blocks, 1)}

    def take(row: int, resid: Tensor | None) -> None:
        # Gathered at once: the whole stream of every block would cost seq_len / n times the memory.
        if resid is not None:
            taken[:, :, row] = resid[sequence.to(resid.device), positions.to(resid.device, torch.long)]
            filled.append(row)

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        take(0, hidden_in(args, kwargs))

    def after(module: nn.Module, _args: tuple[Any, ...], output: object) -> None:
        take(row_of[module], hidden_out(output))

    with ExitStack() as hooks, torch.inference_mode():
        hooks.callback(anatomy.blocks[0].register_forward_pre_hook(before, with_kwargs=True).remove)
        for block in anatomy.blocks:
            hooks.callback(block.register_forward_hook(after).remove)
        mask = {} if attention_mask is None else {"attention_mask": attention_mask.to(device)}
        anatomy.body(input_ids=tokens.to(device), use_cache=False, **mask)
    if filled != list(range(n_rows)):
        raise NumericError(
            f"{type(model).__name__}: a forward pass showed the residual rows {filled}, must be 0..{n_rows - 1} once "
            f"each, in order. {REFUSED}"
        )
    return taken


def _prove(model: PreTrainedModel, anatomy: Anatomy, head: Head, tokens: Tensor) -> Proof:
    every = torch.arange(tokens.shape[1]).expand_as(tokens)
    return prove(model, anatomy, head, tokens, capture(model, anatomy, tokens, every)[:, :, -1])


def _check_batch(
    model: PreTrainedModel, d_vocab: int, tokens: Tensor, positions: Tensor, attention_mask: Tensor | None
) -> None:
    if tokens.dim() != 2 or positions.dim() != 2 or len(tokens) != len(positions) or 0 in tokens.shape:
        raise InputError(
            f"capture: tokens are {tuple(tokens.shape)} and positions {tuple(positions.shape)}, must be (batch, pos) "
            f"and (batch, n) of the same batch"
        )
    pos = tokens.shape[1]
    if (limit := max_length(model)) is not None and pos > limit:
        raise InputError(f"capture: sequences have {pos} tokens, but the model reads at most {limit}")
    for name, values, bound in (("token id", tokens, d_vocab), ("position", positions, pos)):
        if not values.numel():
            continue
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= bound:
            worst = low if low < 0 else high
            raise InputError(f"capture: {name} {worst} is out of range, allowed are 0..{bound - 1}")
    if attention_mask is not None:
        if attention_mask.shape != tokens.shape:
            raise InputError(f"capture: attention_mask is {tuple(attention_mask.shape)}, must be {tuple(tokens.shape)}")
        if bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any()):
            raise InputError("capture: attention_mask has text after padding; sequences must be padded on the right")
