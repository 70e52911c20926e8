"""A frozen causal LM as blocks, norms and a head, proven to read the model as it reads itself.

Block l of L ends in resid_post[l], (batch, pos, d_model); block 0 reads the embedding. Layer 0 is the embedding, layer
i is resid_post[i - 1]. `capture` gives the residuals of all layers at some positions, `head` decodes them, and `proof`
says how near the head on the last layer comes to the model.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lensmith.hub.pins import ModelPin
from lensmith.process.errors import InputError, NumericError
from lensmith.settings.sections import SourceParams
from lensmith.source import loading, placement, ranks
from lensmith.source.configuration import max_length
from lensmith.source.discovery import Anatomy, dissect
from lensmith.source.head import Head
from lensmith.source.placement import NO_LENS, LensMemory
from lensmith.source.proof import Proof, proof_tokens, prove
from lensmith.source.skeleton import Skeleton
from lensmith.source.tokenizer import load_tokenizer
from lensmith.source.watching import check_finite, hidden_in, hidden_out


@dataclass(frozen=True)
class Backbone:
    """A causal LM in eval mode; its weights are never changed."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    anatomy: Anatomy
    head: Head
    proof: Proof

    @classmethod
    def load(cls, source: SourceParams, pin: ModelPin, *, lens_memory: LensMemory = NO_LENS) -> Self:
        """The model of `pin`, from files that match its hashes; there must be room for `lens_memory` too.

        Raises:
            InputError: the model cannot be used: unknown architecture, no safetensors, no final norm.
            IntegrityError: files are missing, changed or broken, or a weight is not in them.
            NumericError: a weight is not finite, or the model does not pass its proof.
            ResourceError: the model does not fit where `source.placement` puts it.
        """
        skeleton = Skeleton.read(source, pin)
        layout = placement.place(skeleton, source.placement, lens_memory)
        path, name, trusted = skeleton.path, skeleton.name, skeleton.trusted
        if layout.n_ranks > 1:
            model = ranks.load_model(skeleton, layout)
        else:
            config = skeleton.model.config
            model = loading.load_model(path, name, skeleton.dtype, layout, config=config, trusted=trusted)
        tokenizer = load_tokenizer(path, name, trusted=trusted)
        return cls.from_model(model, tokenizer)

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """A model in memory, converted to `dtype` where one is given; its parts are identified and proven.

        Raises:
            InputError: a part was not found.
            NumericError: the model does not pass its proof.
        """
        model = (model if dtype is None else model.to(dtype)).eval()  # type: ignore[arg-type]
        tokens = proof_tokens(model, tokenizer)
        anatomy = dissect(model, tokens)
        head = anatomy.head()
        return cls(model, tokenizer, anatomy, head, _prove(model, anatomy, head, tokens))

    @property
    def n_layers(self) -> int:
        """L, the number of blocks."""
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
        """The head's; blocks may be on others."""
        return self.head.W_U.device

    @property
    def arithmetic(self) -> dict[str, object]:
        """What decides the last bits of a forward pass, beside the weights and the shape of the batch."""
        return {
            "dtype": str(self.dtype),
            "device": "cpu" if self.device.type == "cpu" else torch.cuda.get_device_name(self.device),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "ranks": ranks.size(),
            "torch": torch.__version__,
        }

    def capture(self, tokens: Tensor, positions: Tensor, *, attention_mask: Tensor | None = None) -> Tensor:
        """The residuals of all layers at some positions, from one forward pass without the head.

        Args:
            tokens: (batch, pos) of ids below d_vocab.
            positions: (batch, n) of indices into pos, in any order.
            attention_mask: (batch, pos), 1 for text and 0 for the padding to its right.

        Returns:
            (batch, n, n_layers + 1, d_model) in the model's dtype, layer by layer.

        Raises:
            InputError: ids or positions are out of range, sequences longer than the model reads, or padded on the left.
            NumericError: a residual overflows float16.
        """
        if tokens.dim() != 2 or positions.dim() != 2 or len(tokens) != len(positions) or 0 in tokens.shape:
            raise InputError(
                f"capture: tokens are {tuple(tokens.shape)} and positions {tuple(positions.shape)}, must be "
                "(batch, pos) and (batch, n) of the same batch"
            )
        n_pos = tokens.shape[1]
        if (limit := max_length(self.model.config)) is not None and n_pos > limit:
            raise InputError(f"capture: sequences have {n_pos} tokens, but the model reads at most {limit}")
        for name, values, bound in (("token id", tokens, self.d_vocab), ("position", positions, n_pos)):
            if (wrong := values[(values < 0) | (values >= bound)]).numel():
                raise InputError(f"capture: {name} {int(wrong[0])} is out of range, allowed are 0..{bound - 1}")
        if attention_mask is not None:
            if attention_mask.shape != tokens.shape:
                mask_shape = tuple(attention_mask.shape)
                raise InputError(f"capture: attention_mask is {mask_shape}, must be {tuple(tokens.shape)}")
            if bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any()):
                raise InputError(
                    "capture: attention_mask has text after padding; sequences must be padded on the right"
                )
        return capture(self.model, self.anatomy, tokens, positions, attention_mask)

    def logits(self, tokens: Tensor) -> Tensor:
        """The model's own logits, (batch, pos, d_vocab) in fp32: all in memory at once, for proofs and tests."""
        with torch.inference_mode():
            output: Tensor = self.model(input_ids=tokens.to(self.device), use_cache=False).logits
        return output.float()

    def release(self) -> None:
        """Free the weights, in every process that shares them. The head and the model's configuration stay."""
        ranks.release()
        placement.release(self.model)

    def prove(self) -> Proof:
        """The proof, measured again on the model as it is now.

        Raises:
            NumericError: the head on the last layer is not the model.
        """
        return _prove(self.model, self.anatomy, self.head, proof_tokens(self.model, self.tokenizer))


def capture(
    model: PreTrainedModel, anatomy: Anatomy, tokens: Tensor, positions: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """`Backbone.capture` without its checks."""
    device, n_layers = anatomy.device, len(anatomy.blocks)
    sequences = torch.arange(len(tokens)).unsqueeze(1)
    # Made outside inference_mode: autograd accepts no tensor from inside it, and a lens is trained on these.
    residuals = torch.empty(*positions.shape, n_layers + 1, anatomy.d_model, dtype=model.dtype, device=device)
    captured: list[int] = []
    layer_of = {block: layer for layer, block in enumerate(anatomy.blocks, 1)}

    def store(layer: int, resid: Tensor | None) -> None:
        # Only the positions: the whole stream of every block would take seq_len / n times the memory.
        if resid is not None:
            residuals[:, :, layer] = resid[sequences.to(resid.device), positions.to(resid.device, torch.long)]
            captured.append(layer)

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        store(0, hidden_in(args, kwargs))

    def after(module: nn.Module, _args: tuple[Any, ...], output: object) -> None:
        store(layer_of[module], hidden_out(output))

    with ExitStack() as hooks, torch.inference_mode():
        hooks.callback(anatomy.blocks[0].register_forward_pre_hook(before, with_kwargs=True).remove)
        for block in anatomy.blocks:
            hooks.callback(block.register_forward_hook(after).remove)
        mask = {} if attention_mask is None else {"attention_mask": attention_mask.to(device)}
        anatomy.body(input_ids=tokens.to(device), use_cache=False, **mask)
    if captured != list(range(n_layers + 1)):
        raise NumericError(
            f"{type(model).__name__}: a forward pass gave residuals of the layers {captured}, must be 0..{n_layers} "
            f"once each, in order. Nothing was captured."
        )
    if residuals.dtype == torch.float16:  # text alone can overflow it; in other dtypes the fit's own checks are enough
        check_finite(type(model).__name__, enumerate(residuals.unbind(2)))
    return residuals


def _prove(model: PreTrainedModel, anatomy: Anatomy, head: Head, tokens: Tensor) -> Proof:
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    return prove(model, anatomy, head, tokens, capture(model, anatomy, tokens, positions)[:, :, -1])
