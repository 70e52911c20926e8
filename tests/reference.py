"""Everything about a tiny Llama again, in fp64 and straight from transformers' own outputs: no code of ours."""

import copy
import math

import torch
from torch import Tensor
from transformers import PreTrainedModel


class Reference:
    """The lenses of one text, (pos, d_vocab) logits in fp64.

    `lens` is read by attribute only: its tensors are the input of the computation, not the computation.
    """

    def __init__(self, model: PreTrainedModel, lens: object, ids: list[int]) -> None:
        self.model, self.lens = copy.deepcopy(model).double(), lens
        with torch.no_grad():
            output = self.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        self.own = output.logits[0]
        self.hidden = [h[0] for h in output.hidden_states]
        self.n_layers = len(self.hidden) - 1

    def logits(self, name: str, row: int) -> Tensor:
        """What the lens reads; at the last row what the model says."""
        if row == self.n_layers:
            return self.own
        tau = math.exp(float(self.lens.log_tau[row - 1])) if name == "tuned" else 1.0  # type: ignore[attr-defined]
        with torch.no_grad():
            return self.y(name, row) @ self.model.lm_head.weight.T / tau

    def y(self, name: str, row: int) -> Tensor:
        """What W_U reads, (pos, d_model)."""
        if row == self.n_layers:  # transformers gives the last residual already normed
            return self.hidden[row]
        body = self.model.model
        norm = body.layers[row].input_layernorm if name == "norm_next" else body.norm
        with torch.no_grad():
            x = norm(self.hidden[row])
        if name != "tuned":
            return x
        U, V, c, scale = (getattr(self.lens, part)[row - 1].double() for part in ("U", "V", "c", "scale"))
        return scale * x + x @ (U @ V.T) + c


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in bits over the last dimension."""
    p, q = p.softmax(-1), q.softmax(-1)
    return (p * (p / q).log2()).sum(-1)


def entropy(p: Tensor) -> Tensor:
    p = p.softmax(-1)
    return -(p * p.log2()).sum(-1)
