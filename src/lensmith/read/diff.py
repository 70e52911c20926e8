"""Two models on the same texts, each read by its own lens: `lensmith diff`.

A row of positions.parquet is one position of one text, with `parts.COLUMNS` and, for the models a and b,

    final_token_a, top_ids_a, top_p_a    the model's own answer, and its likeliest tokens
    prediction_depth_a, commitment_depth_E_bits_a    as in dataset.py
    top_id_a               by layer: the top token of the lens
    kl_final_lens_bits_a   by layer: KL(final || lens), both of a
    kl_a_b_bits            by layer: KL(lens of a || lens of b); at the last layer of the models themselves
    kl_b_a_bits            by layer: the other way round

Lists begin with layer 0, the embedding. They are empty there, and at layers that one of the lenses does not read. Means
and intervals are computed from that file, a part at a time. An interval resamples texts: neighbouring positions of a
text are alike.
"""

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from lensmith.files import artifacts
from lensmith.judge import bootstrap
from lensmith.judge.judgement import Estimate
from lensmith.judge.tables import Floats
from lensmith.lens.divergence import BITS
from lensmith.lens.tiles import LOWEST
from lensmith.process.draws import Stream
from lensmith.process.errors import InputError
from lensmith.read import parts
from lensmith.read.dataset import DEPTHS, Subject, by_layer, depths
from lensmith.read.parts import Part, Place
from lensmith.read.text import word
from lensmith.report import difference
from lensmith.report.difference import B_LESS_A, SAME_TOP, SIDES, Difference, WidePosition
from lensmith.source.configuration import max_length
from lensmith.source.head import ByDevice

POSITIONS, LAYERS, DEPTHS_TABLE, PAGE = "positions.parquet", "layers.csv", "depths.csv", "diff.html"
DISTANCES = ("kl_final_lens_bits_a", "kl_final_lens_bits_b", "kl_a_b_bits", "kl_b_a_bits")
N_WIDEST = 30  # positions that the page shows
CONTEXT_TOKENS = 40  # before such a position
# Up to so many texts are resampled one by one; of more, every so many-th together, so that memory does not grow.
CLUSTERS = 1000
# Of one table of logits, of which there are about ten. On a CPU larger ones get fresh pages each time.
LOGITS_BYTES = ByDevice(cpu=2**24, accelerator=2**30)
SAMPLES, CONFIDENCE = 2000, 0.95


@dataclass(frozen=True)
class Pair:
    """Two models with their lenses, under the names that their user gave them."""

    names: tuple[str, str]
    sides: tuple[Subject, Subject]

    def __post_init__(self) -> None:
        for name, what in (("n_layers", "blocks"), ("d_vocab", "tokens in the vocabulary")):
            ours, theirs = (getattr(side.backbone, name) for side in self.sides)
            if ours != theirs:
                raise InputError(
                    f"{self.names[0]} has {ours} {what}, {self.names[1]} has {theirs}: layers and tokens are compared "
                    "one by one, so both models must have as many. Nothing was written."
                )

    @property
    def n_layers(self) -> int:
        return self.sides[0].backbone.n_layers

    @property
    def layers(self) -> list[int]:
        """The layers that both lenses read; the last one is among them."""
        ours, theirs = (side.lens.layers for side in self.sides)
        return sorted({*ours} & {*theirs})

    def encode(self, part: Part) -> list[list[int]]:
        """The ids of each text, which must be the same for both. InputError where they are not."""
        ours, theirs = (part.encode(side.encode) for side in self.sides)
        for (number, document), a, b in zip(part.texts, ours, theirs, strict=True):
            if a != b:
                at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
                raise InputError(
                    f"{part.files[document.file]}: row {document.row} (text {number}) has other ids in {self.names[0]} "
                    f"than in {self.names[1]}, {len(a)} and {len(b)} of them, the first at position {at}. Models are "
                    "compared on the same ids only."
                )
        return ours

    def table(self, top_k: int, part: Part) -> pa.Table:
        """The rows of some texts."""
        backbones = [side.backbone for side in self.sides]
        whole = self.encode(part)
        limits = [limit for backbone in backbones if (limit := max_length(backbone.model.config)) is not None]
        ids = [text[: min(limits, default=None)] for text in whole]
        schema = self.schema(min(top_k, backbones[0].d_vocab))
        places, found = self.read(top_k, ids)
        if not places:
            return schema.empty_table()
        following = [next(iter(ids[text][pos + 1 : pos + 2]), None) for text, pos in places]
        words = {token: word(backbones[0], token) for token in set(itertools.chain(*ids))}
        columns = part.columns(places, whole, following, words)
        for side, backbone in zip(SIDES, backbones, strict=True):
            top, kl = found[f"top_id_{side}"], found[f"kl_final_lens_bits_{side}"]
            columns |= {f"{name}_{side}": values for name, values in depths(top, kl, self.layers).items()}
            columns[f"final_token_{side}"] = [word(backbone, token) for token in top[:, -1].tolist()]
            columns[f"top_id_{side}"] = by_layer(top, np.int32, self.layers)
            columns[f"top_ids_{side}"] = found[f"top_ids_{side}"].tolist()
            columns[f"top_p_{side}"] = found[f"top_p_{side}"].tolist()
        columns |= {name: by_layer(found[name], np.float32, self.layers) for name in DISTANCES}
        return pa.table(columns, schema=schema).sort_by([("text", "ascending"), ("pos", "ascending")])

    @torch.inference_mode()
    def read(self, top_k: int, ids: Sequence[Sequence[int]]) -> tuple[list[Place], dict[str, NDArray[Any]]]:
        """Both models at every position, in the order of the places: columns (n, layers), or (n, top_k)."""
        backbones = [side.backbone for side in self.sides]
        rows = max(1, LOGITS_BYTES.of(backbones[0].device) // (4 * backbones[0].d_vocab))
        wider = max(backbones, key=lambda backbone: backbone.d_model)
        places, found = list[Place](), list[dict[str, Tensor]]()
        for batch in parts.batches(ids, "all", wider):
            (ours, at), (theirs, _) = (parts.capture(backbone, ids, batch, "all") for backbone in backbones)
            places += at
            both = zip(ours.split(rows), theirs.split(rows), strict=True)
            found += [self.compare(top_k, streams) for streams in both]
        return places, {name: torch.cat([each[name] for each in found]).cpu().numpy() for name in (found or [{}])[0]}

    def compare(self, top_k: int, streams: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The columns of n positions, from the residuals (n, L + 1, d_model) of each model."""

        def read(layer: int) -> list[tuple[Tensor, Tensor]]:
            """(log q, q) of the lenses at a layer, (n, d_vocab) in nats."""
            both = []
            for side, stream in zip(self.sides, streams, strict=True):
                head = side.backbone.head
                z = head.logits(*side.lens.head_reads(head, stream[:, layer], layer)).to(streams[0].device)
                log_q = z.log_softmax(-1).clamp_(min=LOWEST)  # -inf times zero is NaN
                both.append((log_q, log_q.exp()))
            return both

        dot = torch.linalg.vecdot
        finals = read(self.n_layers)
        columns = defaultdict[str, list[Tensor]](list)
        for layer in self.layers:
            (log_a, a), (log_b, b) = lenses = read(layer)
            columns["kl_a_b_bits"].append(dot(a, log_a) - dot(a, log_b))
            columns["kl_b_a_bits"].append(dot(b, log_b) - dot(b, log_a))
            for side, (log_p, p), (log_q, _) in zip(SIDES, finals, lenses, strict=True):
                columns[f"kl_final_lens_bits_{side}"].append(dot(p, log_p) - dot(p, log_q))
                columns[f"top_id_{side}"].append(log_q.argmax(-1))
        tables = {name: torch.stack(values, 1) for name, values in columns.items()}
        tables |= {name: tables[name] * BITS for name in DISTANCES}
        for side, (_, p) in zip(SIDES, finals, strict=True):
            best = p.topk(min(top_k, p.shape[-1]))
            tables |= {f"top_ids_{side}": best.indices, f"top_p_{side}": best.values}
        return tables

    def schema(self, top_k: int) -> pa.Schema:
        """The columns of the rows."""
        columns = dict(parts.COLUMNS)
        for side in SIDES:
            columns |= {f"final_token_{side}": pa.string()} | {f"{name}_{side}": pa.int16() for name in DEPTHS}
            columns |= {f"top_ids_{side}": pa.list_(pa.int32(), top_k), f"top_p_{side}": pa.list_(pa.float32(), top_k)}
            columns[f"top_id_{side}"] = pa.list_(pa.int32(), self.n_layers + 1)
        return pa.schema(columns | dict.fromkeys(DISTANCES, pa.list_(pa.float32(), self.n_layers + 1)))

    def wide_position(self, table: pa.Table, at: int, kl: float) -> WidePosition:
        """The position in row `at`, whose text stands in the rows before it."""
        row = table.slice(at, 1).to_pylist()[0]
        start = max(at - min(row["pos"], CONTEXT_TOKENS), 0)
        tokens = table["token_id"].slice(start, at - start + 1).to_pylist()
        tops = []
        for side, subject in zip(SIDES, self.sides, strict=True):
            words = [word(subject.backbone, token) for token in row[f"top_ids_{side}"]]
            tops.append(list(zip(words, row[f"top_p_{side}"], strict=True)))
        backbone = self.sides[0].backbone
        following = "" if row["next_token_id"] is None else word(backbone, row["next_token_id"])
        context = "".join(word(backbone, token) for token in tokens)
        return WidePosition(row["text"], row["file"], row["row"], row["pos"], context, following, kl, *tops)


def write(out: Path, pair: Pair, texts: Sequence[str], column: str, top_k: int) -> Difference:
    """Read texts with both models, and write the tables and the page into the folder `out`.

    Raises:
        InputError: the models cannot be compared, or as `parts.write`.
        Interrupted: as `parts.write`.
    """
    if top_k < 1:
        raise InputError(f"--top-k is {top_k}, must be at least 1. Nothing was written.")
    tokenizer = pair.sides[0].backbone.tokenizer
    assert tokenizer is not None  # a loaded model has one
    request = {"names": pair.names, "top_k": top_k, "sides": [side.identity for side in pair.sides]}
    table = partial(pair.table, top_k)
    counts = parts.write(out / POSITIONS, texts, column, tokenizer, request=request, table=table)
    found = summarise(out / POSITIONS, pair, counts)
    layers = [
        (name, layer, estimate.value, estimate.lo, estimate.hi)
        for name, curve in found.by_layer.items()
        for layer, estimate in curve.items()
    ]
    artifacts.write_csv(out / LAYERS, ("quantity", "layer", "mean", "lo", "hi"), layers)
    kept = [
        (name, side, estimate.value, estimate.lo, estimate.hi)
        for name, by_side in found.depths.items()
        for side, estimate in by_side.items()
    ]
    artifacts.write_csv(out / DEPTHS_TABLE, ("quantity", "model", "mean", "lo", "hi"), kept)
    artifacts.write_text(out / PAGE, difference.page(found))
    return found


def summarise(path: Path, pair: Pair, counts: Counter[str]) -> Difference:
    """What positions.parquet says in the mean, and where the models differ most; it is read a part at a time."""
    by_layer_sums = {name: np.zeros((CLUSTERS, len(pair.layers))) for name in (*DISTANCES, SAME_TOP)}
    depth_sums = {name: {side: np.zeros((CLUSTERS, 1)) for side in (*SIDES, B_LESS_A)} for name in DEPTHS}
    n_positions, widest = np.zeros(CLUSTERS), list[tuple[float, int, int, WidePosition]]()
    file = pq.ParquetFile(path)
    for number in range(file.num_row_groups):
        table = file.read_row_group(number)
        cluster = table["text"].to_numpy() % CLUSTERS
        np.add.at(n_positions, cluster, 1)
        lists = {name: table[name].combine_chunks().flatten() for name in (*DISTANCES, "top_id_a", "top_id_b")}
        rows = {name: each.to_numpy(zero_copy_only=False).reshape(len(table), -1) for name, each in lists.items()}
        layers = {name: each[:, pair.layers].astype(float) for name, each in rows.items()}
        layers[SAME_TOP] = (layers["top_id_a"] == layers["top_id_b"]).astype(float)
        for name, sums in by_layer_sums.items():
            np.add.at(sums, cluster, layers[name])
        for name, by_side in depth_sums.items():
            values = {side: table[f"{name}_{side}"].to_numpy()[:, None].astype(float) for side in SIDES}
            for side, sums in by_side.items():
                np.add.at(sums, cluster, values["b"] - values["a"] if side == B_LESS_A else values[side])
        final_kl = layers["kl_a_b_bits"][:, -1]
        for at in np.argsort(-final_kl, kind="stable")[:N_WIDEST].tolist():
            position = pair.wide_position(table, at, float(final_kl[at]))
            widest.append((-position.kl_bits, position.text, position.pos, position))
        widest = heapq.nsmallest(N_WIDEST, widest)
    draws = bootstrap.draw(range(int((n_positions > 0).sum())), SAMPLES, Stream(0, "diff"))

    def means(sums: Floats) -> list[Estimate]:
        columns = (np.stack([column, n_positions], 1)[n_positions > 0] for column in sums.T)
        return [bootstrap.estimate(bootstrap.ratio, column, draws, CONFIDENCE) for column in columns]

    return Difference(
        names=pair.names,
        counts=dict(counts),
        n_positions=int(n_positions.sum()),
        by_layer={name: dict(zip(pair.layers, means(sums), strict=True)) for name, sums in by_layer_sums.items()},
        depths={name: {side: means(each)[0] for side, each in sums.items()} for name, sums in depth_sums.items()},
        widest=[position for *_, position in widest],
    )
