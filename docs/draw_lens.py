"""Draws docs/lens.svg: what the norm lens and the tuned lens read at the layers of SmolLM2-135M.

python docs/draw_lens.py        after `make real`, in the repository's root
"""

from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

import lensmith

FOLDER, FILE = "real/models", "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "The capital of France is"
MOST_ROWS = 16  # of a deeper model some layers are left out, evenly
WIDTH, ROW, TOP, PILL = 880, 25, 104, 256  # pixels; TOP is the y of the last layer's row
STREAM, NORM, TUNED = 160, 304, 600  # x of the residual stream, and of each column's left edge
RANKS = ((1, "0"), (10, "1 to 9"), (100, "10 to 99"), (10**9, "100 or more"))  # upper bounds of the shades

STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de }  text { fill: #1f2328; font: 13px system-ui, sans-serif }
  .note { fill: #59636e; font-size: 12px }  .head { font-weight: 600; font-size: 14px }
  .line { stroke: #8c959f; fill: none }  .stream { stroke: #0969da; stroke-width: 5 }  .tip { fill: #0969da }
  .block { fill: #eaeef2; stroke: #d0d7de }
  .s0 { fill: #1a7f5a }  .s1 { fill: #7cc8a8 }  .s2 { fill: #cfe9dd }  .s3 { fill: #eaeef2 }
  text.on0 { fill: #ffffff; font-weight: 600 }  text.on1, text.on2 { fill: #10241c }
  @media (prefers-color-scheme: dark) {
    .card { fill: #0d1117; stroke: #3d444d }  text { fill: #f0f6fc }  .note { fill: #9198a1 }
    .line { stroke: #656c76 }  .stream { stroke: #4493f8 }  .tip { fill: #4493f8 }
    .block { fill: #212830; stroke: #3d444d }
    .s0 { fill: #3fb68b }  .s1 { fill: #21755a }  .s2 { fill: #14402f }  .s3 { fill: #212830 }
    text.on0 { fill: #05130d }  text.on1, text.on2 { fill: #f0f6fc }
  }
"""


@dataclass(frozen=True)
class Reading:
    """What one lens reads at one layer, at the text's last position."""

    top: str
    answer_rank: int  # 0: the model's own answer comes first

    @property
    def shade(self) -> int:
        return next(i for i, (bound, _) in enumerate(RANKS) if self.answer_rank < bound)


def readings(frame: pd.DataFrame, lens: str) -> dict[int, Reading]:
    """The readings of one lens by layer, from a trajectory's frame."""
    last = frame[(frame.lens == lens) & (frame.pos == frame.pos.max()) & (frame.layer > 0)]
    rows = zip(last.layer, last.top1, last.final_token_rank, strict=True)
    return {int(layer): Reading(top.strip() or repr(top)[1:-1], int(rank)) for layer, top, rank in rows}


def text(x: float, y: float, words: str, name: str = "", anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{name}" text-anchor="{anchor}">{escape(words)}</text>'


def pill(x: int, y: float, reading: Reading) -> str:
    """A cell of the table: the top token, and the place of the answer where it is not the first."""
    rank = "the answer" if reading.answer_rank == 0 else f"answer at rank {reading.answer_rank}"
    return (
        f'<rect x="{x}" y="{y - 10}" width="{PILL}" height="20" rx="10" class="s{reading.shade}"/>'
        + text(x + 14, y + 4.5, reading.top, f"on{reading.shade}")
        + text(x + PILL - 14, y + 4.5, rank, f"on{reading.shade}", "end")
    )


def blocks(layer: int, step: int) -> str:
    """The blocks between a layer and the next one that is drawn."""
    first = max(layer + step, 0)
    return f"block {layer - 1}" if first == layer - 1 else f"blocks {first} to {layer - 1}"


def draw(norm: dict[int, Reading], tuned: dict[int, Reading]) -> str:
    """The picture as SVG. It has a background of its own, so that it is legible on any page."""
    n_layers = max(tuned)
    layers = range(n_layers, 0, -n_layers // MOST_ROWS)
    bottom = TOP + len(layers) * ROW
    height = bottom + 76
    parts = [
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8" class="card"/>',
        text(STREAM, 30, "the model", "head", "middle"),
        text(STREAM, 50, f"its answer: {tuned[n_layers].top}", "", "middle"),
        text(NORM, 30, "norm lens", "head"),
        text(NORM, 50, "final norm, then unembedding", "note"),
        text(TUNED, 30, "tuned lens", "head"),
        text(TUNED, 50, "final norm, learned map, then unembedding", "note"),
        f'<path d="M{STREAM} {bottom}V{TOP - 24}" class="line stream"/>',
        f'<path d="M{STREAM - 9} {TOP - 22}h18l-9 -14z" class="tip"/>',
        text(STREAM, bottom + 20, TEXT, "", "middle"),
        text(24, (TOP + bottom) / 2 - 18, "residual", "note"),
        text(24, (TOP + bottom) / 2 - 2, "stream", "note"),
    ]
    for row, layer in enumerate(layers):
        y = TOP + row * ROW
        parts += [
            f'<rect x="{STREAM - 60}" y="{y + 3}" width="120" height="18" rx="3" class="block"/>',
            text(STREAM, y + 16, blocks(layer, layers.step), "note", "middle"),
            f'<path d="M{STREAM} {y}H{NORM - 8}" class="line"/>',
            f'<circle cx="{STREAM}" cy="{y}" r="4" class="tip"/>',
            text(NORM - 14, y - 3, f"layer {layer}", "note", "end"),
            f'<path d="M{NORM + PILL} {y}H{TUNED}" class="line"/>',
            pill(NORM, y, norm[layer]),
            pill(TUNED, y, tuned[layer]),
        ]
    parts.append(text(24, height - 22, "Rank of the model's own answer among the tokens that a lens reads:", "note"))
    for place, (_, words) in enumerate(RANKS):
        x = 450 + 104 * place
        parts.append(f'<rect x="{x}" y="{height - 32}" width="14" height="14" rx="4" class="s{place}"/>')
        parts.append(text(x + 20, height - 21, words, "note"))
    title = "<title>What a norm lens and a tuned lens read at every layer of a model</title>"
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">{title}\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )


def main() -> None:
    plain = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=FILE, quantization_config=plain, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, gguf_file=FILE)
    reader = lensmith.bind(lensmith.load("real/release/smollm2"), model, tokenizer)
    frame = reader.trajectory(TEXT).frame()
    Path(__file__).with_name("lens.svg").write_text(draw(readings(frame, "norm"), readings(frame, "tuned")))


if __name__ == "__main__":
    main()
