"""Translators carry a middle layer's residual stream to where the model's own head can read it.

Block l of L ends in resid_post[l], (batch, pos, d_model). With N the norm that the head reads through, tau and g the
temperature and the model's logit transform,

    x = N(resid_post[l])        y = s_l * x + (x U_l) V_l^T + c_l        z_l = g((y W_U + b) / tau_l)
        U_l, V_l (d_model, rank), s_l, c_l (d_model), tau_l scalar

This is the placement `normed`, the only one that is trained here. Jacobian and imported lenses translate before the
norm, placement `residual`: x = resid_post[l] and z_l = g((N(y) W_U + b) / tau_l). Their V_l is 1 and not stored.

`Lens.start` has U random and V at zero: it is the norm lens exactly, and V has a gradient from the first step. With
both at zero neither would ever have one. With `fit.start: closed_form` a fit starts from the closed form instead. The
last block's translator stays the identity.

The kinds are a ladder, each the same map with fewer free parameters:
    identity (none)   temperature (tau)   bias (+ c)   low_rank (+ s, U, V)   full (rank = d_model)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lensmith.files import artifacts
from lensmith.lens import depth
from lensmith.lens.lens_file import TENSORS, WEIGHTS, TranslatorPlacement, check_shapes, read_header
from lensmith.lens.provenance import RoundedHead
from lensmith.process.draws import Stream
from lensmith.process.errors import InputError, IntegrityError
from lensmith.settings.sections import FitParams
from lensmith.source.head import Head, HeadInput, NormKind

# No fit comes near these, and within them every product that leads to the logits stays finite in float32.
LARGEST = 1e8
LARGEST_LOG_TAU = math.log(1e4)
WIDEST = 1024  # the largest rank that `auto` tries


def rank_of(settings: FitParams, d_model: int) -> int:
    """The width of U and V. For `rank: auto` it is the largest rank that is tried, not the one that is chosen.

    With `start: closed_form` that is WIDEST, at most d_model, and stage `fit` chooses by `rank_curve.smallest_rank`.
    With `start: norm_lens` nothing is tried: auto is the reference recipe's clip(d_model // 32, 64, 256), at most
    d_model.

    Raises:
        InputError: a rank above d_model.
    """
    if settings.kind not in ("low_rank", "full"):
        return 0
    if settings.kind == "full":
        return d_model
    if settings.rank == "auto":
        return min(d_model, WIDEST if settings.start == "closed_form" else max(64, min(256, d_model // 32)))
    if settings.rank > d_model:
        raise InputError(
            f"params.yaml: fit.rank is {settings.rank}, must be an integer 1..{d_model} (d_model) or auto. "
            "Nothing was fit."
        )
    return settings.rank


@dataclass(frozen=True)
class Lens:
    """The translators of all L blocks, stacked. float32; U of a Jacobian lens is float16.

    U, V: (L, d_model, rank), V None where it is 1; c, scale: (L, d_model); log_tau: (L,). What stands at an absent
    layer is never read. center: (L, d_model), `moments.centers` of the text that it was fit on, which no logits need;
    None where unknown.
    """

    kind: str
    norm: NormKind
    U: Tensor
    V: Tensor | None
    c: Tensor
    scale: Tensor
    log_tau: Tensor
    center: Tensor | None = None
    placement: TranslatorPlacement = "normed"
    w_u_sha256: str | None = None  # of the head that it was fit to; None where unknown
    fit_dtype: str | None = None  # of the weights that it was fit on; None where unknown
    rounded_heads: Mapping[str, RoundedHead] = field(default_factory=dict)  # the same head in other dtypes
    absent: tuple[int, ...] = ()  # layers without a translator, which an imported lens may lack

    def __repr__(self) -> str:
        where = "" if self.placement == "normed" else f", placement={self.placement}"
        return (
            f"Lens({self.kind}, n_layers={self.n_layers}, d_model={self.d_model}, rank={self.rank}, norm={self.norm}"
            f"{where}, {self.c.device})"
        )

    @classmethod
    def start(cls, settings: FitParams, n_layers: int, d_model: int) -> "Lens":
        """The lens before its first step: equal to the norm lens at every layer."""
        rank = rank_of(settings, d_model)
        # One draw for all layers: neighbours share a gauge, so that the penalty on their difference has a meaning.
        drawn = Stream(settings.seed, "translator-init").normal((d_model, rank), step=0)
        U = (torch.from_numpy(drawn) / math.sqrt(d_model)).expand(n_layers, d_model, rank).clone()
        U[-1] = 0
        V, c, log_tau = torch.zeros(n_layers, d_model, rank), torch.zeros(n_layers, d_model), torch.zeros(n_layers)
        return cls(settings.kind, settings.norm, U, V, c, scale=torch.ones(n_layers, d_model), log_tau=log_tau)

    @classmethod
    def of_maps(
        cls, kind: str, maps: Tensor, *, scale: float, c: Tensor | None = None, absent: tuple[int, ...] = ()
    ) -> "Lens":
        """A lens that reads N(h * scale + h @ map + c) of the residuals h (n, d_model).

        Args:
            maps: (L - 1, d_model, d_model), of all layers but the last; zero at those that are absent.
            c: (L - 1, d_model); zero where it is None.
            absent: layers without a map.
        """
        n, d_model = maps.shape[:2]
        last = maps.new_ones(1, d_model, dtype=torch.float32)
        c = last.new_zeros(n, d_model) if c is None else c
        scales = torch.cat([last.new_full((n, d_model), scale), last])
        U, c = torch.cat([maps, maps.new_zeros(1, d_model, d_model)]), torch.cat([c, 0 * last])
        log_tau = last.new_zeros(n + 1)
        return cls(kind, "final", U, None, c, scales, log_tau, placement="residual", absent=absent)

    @property
    def n_layers(self) -> int:
        return len(self.log_tau)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of 1..L that it reads."""
        return depth.layers(self.n_layers, self.absent)

    @property
    def d_model(self) -> int:
        return self.c.shape[-1]

    @property
    def rank(self) -> int:
        return self.U.shape[-1]

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in TENSORS if getattr(self, name) is not None}

    def translate(self, x: Tensor, layer: int) -> Tensor:
        """y of x (n, d_model), what the translator of `layer` reads, `layer` in 1..L.

        Raises:
            InputError: another layer, or an absent one. Layer 0, the embedding, has no translator.
        """
        depth.check_layer(layer, self.n_layers, self.absent)
        block = layer - 1
        # Two thin products: forming U V^T first would cost d_model**2 memory.
        update = x @ self.U[block].to(x.dtype)
        if self.V is not None:
            update = update @ self.V[block].T
        return self.scale[block] * x + update + self.c[block]

    def center_at(self, layer: int) -> Tensor | None:
        """The center at `layer` in 1..L, (d_model,)."""
        return None if self.center is None else self.center[layer - 1]

    def update_norms(self) -> tuple[float, ...]:
        """|U V^T|_F by layer."""
        maps = self.U.float() if self.V is None else self.U @ self.V.mT
        return tuple(maps.flatten(1).norm(dim=1).tolist())

    def transport(self, head: Head, resid: Tensor, layer: int) -> Tensor:
        """y of resid (n, d_model) at `layer` in 1..L: (n, d_model), float32. Raises as `translate`.

        With placement `residual` it stands where the last layer's residual does, before the norm; with `normed` where
        that residual stands after it.
        """
        x = resid.float() if self.placement == "residual" else head.norm(resid, layer, self.norm)
        return self.translate(x, layer)

    def head_input(self, head: Head, resid: Tensor, layer: int) -> Tensor:
        """What W_U reads of resid (n, d_model) at `layer` in 1..L: (n, d_model), float32. Raises as `translate`."""
        y = self.transport(head, resid, layer)
        return head.norm(y, layer, self.norm) if self.placement == "residual" else y

    def head_reads(self, head: Head, resid: Tensor, layer: int) -> HeadInput:
        """What the head reads of resid (n, d_model) at `layer`, with the lens's temperature. Raises as `translate`."""
        return HeadInput(self.head_input(head, resid, layer), self.log_tau[layer - 1])

    def logits(self, head: Head, resid: Tensor, layer: int) -> Tensor:
        """What the lens reads in resid (n, d_model) at `layer`: (n, d_vocab), float32. Raises as `translate`."""
        return head.logits(*self.head_reads(head, resid, layer))

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> "Lens":
        """The same lens with `change` applied to each tensor."""
        return self.with_tensors({name: change(tensor) for name, tensor in self.tensors().items()})

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Lens":
        """The same lens with these tensors in place of its own, by name."""
        return replace(self, **dict[str, Any](tensors))

    def with_layers(self, other: "Lens", taken: Sequence[bool]) -> "Lens":
        """The same lens, with the layers of `other`, a lens of the same form, where `taken` (L,) is true."""
        rows = torch.tensor(taken, device=self.c.device)
        mixed = {}
        for name, tensor in self.tensors().items():
            mixed[name] = torch.where(rows.view(-1, *(1,) * (tensor.dim() - 1)), getattr(other, name), tensor)
        return self.with_tensors(mixed)

    def with_map_of(self, below: "Lens") -> "Lens":
        """A lens of this kind and rank with the map of `below`, a lens of a kind with fewer parameters."""
        tensors = below.tensors()
        U, V = self.U.clone(), torch.zeros_like(self.U)
        U[..., : below.rank], V[..., : below.rank] = tensors["U"], tensors["V"]
        return self.with_tensors({**tensors, "U": U, "V": V})

    def to(self, device: torch.device) -> "Lens":
        return self.map_tensors(lambda tensor: tensor.to(device))

    def check_head(self, head: Head) -> None:
        """IntegrityError where the lens was fit to another model than the one with this head.

        The shape is always checked, W_U where `w_u_sha256` is known.
        """
        check_head(head, self.n_layers, self.d_model, self.w_u_sha256)

    def save(self, folder: Path) -> None:
        """Write `folder`/weights.safetensors.

        Raises:
            IntegrityError: the last block is not the identity, or a number is not finite.
        """
        self._check(folder / WEIGHTS)
        form: dict[str, Any] = {"kind": self.kind, "norm": self.norm, "placement": self.placement, "schema": 1}
        form |= {"absent": self.absent} if self.absent else {}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}
        with artifacts.replacing(folder / WEIGHTS) as temporary:
            save_file(tensors, temporary, metadata={"lensmith": artifacts.canonical_json(form)})

    @classmethod
    def load(cls, folder: Path) -> "Lens":
        """Read `folder`/weights.safetensors.

        Raises:
            IntegrityError: missing, damaged, of another form, or its last block is not the identity.
        """
        path = folder / WEIGHTS
        shapes, form = read_header(path)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in shapes}
        except (OSError, SafetensorError) as error:
            raise IntegrityError(f"{path}: not a whole lens file ({error})") from None
        lens = cls(**form, **{"V": None, **tensors})
        lens._check(path)
        return lens

    def _check(self, path: Path) -> None:
        check_shapes({name: tuple(tensor.shape) for name, tensor in self.tensors().items()}, path)
        check_numbers(self.tensors(), path)
        check_identity({name: tensor[-1] for name, tensor in self.tensors().items()}, path)


def check_head(head: Head, n_layers: int, d_model: int, w_u_sha256: str | None) -> None:
    """`Lens.check_head`, for what is known of a lens that is not in memory."""
    shape, wanted = (len(head.input_norms), head.W_U.shape[1]), (n_layers, d_model)
    if shape != wanted:
        raise IntegrityError(f"the lens is of (layers, d_model) {wanted}, this model has {shape}: another model")
    if w_u_sha256 is not None and (sha256 := head.fingerprint()["w_u_sha256"]) != w_u_sha256:
        raise IntegrityError(
            f"the lens was fit to a head whose W_U has sha256 {w_u_sha256}, this model's, of shape "
            f"{tuple(head.W_U.shape)}, has {sha256}: other weights, a resized embedding, or another precision"
        )


def check_numbers(tensors: Mapping[str, Tensor], path: Path) -> None:
    """IntegrityError where a number is not finite, or so large that logits could overflow; for all layers or some."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise IntegrityError(f"{path}: {name} holds a number that is not finite")
        if tensor.numel() and (largest := float(tensor.abs().max())) > LARGEST:
            raise IntegrityError(f"{path}: {name} holds {largest:.3g}, at most {LARGEST:.3g} is allowed")
    if (tensors["log_tau"].abs() > LARGEST_LOG_TAU).any():
        low, high = math.exp(-LARGEST_LOG_TAU), math.exp(LARGEST_LOG_TAU)
        raise IntegrityError(f"{path}: a temperature is outside {low:.0e}..{high:.0e}")


def check_identity(last: Mapping[str, Tensor], path: Path) -> None:
    """IntegrityError where the tensors of the last block are not the identity."""
    zero = (tensor for name, tensor in last.items() if name not in ("scale", "center"))
    if any(tensor.any() for tensor in zero) or (last["scale"] != 1).any():
        raise IntegrityError(f"{path}: the last block's translator is not the identity")
