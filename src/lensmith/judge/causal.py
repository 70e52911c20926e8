"""What a lens causes: whether the model's answer changes as a lens says when its residual stream is changed.

At the last position of a piece of held-out text, the residual h of a layer becomes h + d, and the model runs on from
there. With p and p' the model's distributions, q and q' those that a lens reads in h and h + d:

    stimulus   s = log q' - log q        what the lens says that d does
    response   r = log p' - log p        what d does
    cosine     <s, r> / (|s| |r|)        <a, b> = sum_v p_v a_v b_v - (sum_v p_v a_v) (sum_v p_v b_v)

This is stimulus-response alignment in the Aitchison geometry weighted by p (Belrose et al. 2023). A small KL says that
a lens predicts the answer; this says that it reads what the later layers read. Every d of a layer has the same length,
STEP of the root mean square distance of its residuals from their mean. Directions, drawn for each position:

    lens        the gradient of a random contrast of the judged lens's logits at h, sum_v sqrt(p_v) e_v (z_v - <z>)
    principal   a random mixture of the first principal components of the layer's residuals
    random      any
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lensmith.judge.bench import Bench
from lensmith.judge.tables import DIRECTIONS, TUNED
from lensmith.lens.divergence import BITS
from lensmith.process.draws import Stream
from lensmith.process.progress import Progress
from lensmith.source import ranks
from lensmith.source.backbone import Backbone
from lensmith.source.watching import hidden_out

CONTEXT = 16  # tokens of a text, the last of which is changed; each change is a forward pass over them
SAMPLED = 8  # of them, the last ones: their residuals say how far and where those of a layer spread
PARTS = 8  # of the depth; layers at their borders are changed
STEP = 0.1
COMPONENTS = 8


def layers_of(n_layers: int) -> list[int]:
    """The layers that are changed. At the last one every lens is the model."""
    return sorted({max(1, round(n_layers * part / PARTS)) for part in range(1, PARTS)} - {n_layers})


def lines(bench: Bench, tokens: Tensor, seed: int, first: int) -> Iterator[list[object]]:
    """The lines of causal.csv for sequences (n, seq_len), which are number `first` and on of the held-out text.

    None where processes share the blocks: the residual would change in one of them alone.
    """
    at = layers_of(bench.n_layers) if len(tokens) and ranks.size() == 1 else []
    if not at:
        return
    text, head = tokens[:, :CONTEXT], bench.backbone.head
    sampled = torch.arange(text.shape[1])[-SAMPLED:].expand(len(text), -1)
    resid = bench.backbone.capture(text, sampled)
    log_p = bench.final(resid[:, -1]).log_softmax(-1)
    with Progress("sweep, causal", len(at) * len(DIRECTIONS), "change") as progress:
        for layer in at:
            lenses = [lens for lens in bench.names if layer in bench.layers(lens)]
            log_q = {lens: _log_q(bench, lens, layer, resid[:, -1]) for lens in lenses}
            for name, direction in directions(bench, resid[:, :, layer], log_p.exp(), layer, seed):
                stream = resid[:, -1].clone()
                stream[:, layer] += direction.to(stream.dtype)
                final = run_on(bench.backbone, text, layer, stream[:, layer])
                response = head.logits(head.norm(final, bench.n_layers)).log_softmax(-1) - log_p
                for lens in lenses:
                    stimulus = _log_q(bench, lens, layer, stream) - log_q[lens]
                    for seq, numbers in enumerate(alignment(log_p.exp(), stimulus, response).tolist(), first):
                        yield [seq, layer, name, lens, *numbers]
                progress.advance()


def _log_q(bench: Bench, lens: str, layer: int, stream: Tensor) -> Tensor:
    return bench.backbone.head.logits(*bench.head_reads(lens, layer, stream)).log_softmax(-1)


def alignment(p: Tensor, stimulus: Tensor, response: Tensor) -> Tensor:
    """Cosine, length of the stimulus and length of the response, in bits, of changes (n, d_vocab): (n, 3) float64."""
    weights = p.double()
    s, r = (change.double() - (weights * change).sum(-1, keepdim=True) for change in (stimulus, response))
    s_length, r_length = ((weights * change**2).sum(-1).sqrt() for change in (s, r))
    return torch.stack([(weights * s * r).sum(-1) / (s_length * r_length), BITS * s_length, BITS * r_length], -1)


def directions(bench: Bench, resid: Tensor, p: Tensor, layer: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Changes (n, d_model) of the last of residuals (n, s, d_model) at a layer, by the name of their direction.

    Args:
        p: (n, d_vocab), the model's distribution there.
    """
    around = resid.flatten(0, 1).float()
    around = around - around.mean(0)
    step = STEP * around.square().sum(-1).mean().sqrt()
    components = torch.linalg.svd(around, full_matrices=False).Vh[:COMPONENTS]

    def drawn(name: str, width: int) -> Tensor:
        normal = Stream(seed, f"causal-{name}").normal((len(resid), width), step=layer)
        return torch.from_numpy(normal).to(around)

    directions = {"random": drawn("random", around.shape[-1])}
    directions["principal"] = drawn("principal", len(components)) @ components
    if layer in bench.layers(TUNED):
        contrast = p.sqrt() * drawn("lens", p.shape[-1])
        with torch.enable_grad():
            h = resid[:, -1].float().requires_grad_()
            z = bench.lens.logits(bench.backbone.head, h, layer)
            contrasted = (z * (contrast - p * contrast.sum(-1, keepdim=True))).sum()
        (directions["lens"],) = torch.autograd.grad(contrasted, h)
    for name, direction in directions.items():
        yield name, step * nn.functional.normalize(direction, dim=-1)


def run_on(backbone: Backbone, tokens: Tensor, layer: int, resid: Tensor) -> Tensor:
    """The last layer's residual at the last position, (n, d_model), where that of `layer` there is `resid`."""

    def change(_module: nn.Module, _args: tuple[object, ...], output: object) -> None:
        if (stream := hidden_out(output)) is not None:
            stream[:, -1] = resid.to(stream.device)

    last = torch.full((len(tokens), 1), tokens.shape[1] - 1)
    hook = backbone.anatomy.blocks[layer - 1].register_forward_hook(change)
    try:
        return backbone.capture(tokens, last)[:, 0, -1]
    finally:
        hook.remove()
