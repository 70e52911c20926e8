"""A data set through a lens: `lensmith read` writes one parquet file.

A row is one lens at one position of one text. Columns of numbers hold a list with one number for each layer, at the
index of that layer: 0 the embedding, which the tuned lens does not read, i the residual after block i - 1.

    text, file, row        the text's number, and where it stands
    n_tokens, pos          of the text; of the position, from 0
    token, final_token     what stands there, and the model's own answer, as text; their ids beside them
    next_token_id          of the token that follows in the text; nothing at its end
    lens
    prediction_depth       the first layer from which on the lens's top token is the model's own answer
    commitment_depth_E_bits    the first layer from which on KL(final || lens) is at most E bits
    entropy_bits, kl_final_lens_bits, kl_lens_final_bits, next_token_rank, top_ids, top_p    by layer
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lensmith.files import artifacts, seals
from lensmith.judge import walk
from lensmith.judge.bench import Bench
from lensmith.judge.tables import DISTANCES, TUNED
from lensmith.judge.walk import MEASURED, ROWS, LayeredLens, Name, Reading
from lensmith.lab.layout import ARTIFACTS, RESOLVED
from lensmith.lens.lens_file import WEIGHTS
from lensmith.process.errors import InputError
from lensmith.read import parts
from lensmith.read.parts import Part, Place
from lensmith.read.text import word
from lensmith.release import pretrained
from lensmith.settings import params_yaml, sections
from lensmith.source.backbone import Backbone
from lensmith.source.configuration import max_length
from lensmith.source.tokenizer import Encoder

COMMITTED_BITS = (0.1, 0.5, 1.0)
BITS = DISTANCES[:3]
DEPTHS = ("prediction_depth", *(f"commitment_depth_{bits}_bits" for bits in COMMITTED_BITS))


@dataclass(frozen=True)
class Request:
    """What is read, and of it what is written."""

    texts: tuple[str, ...]  # files, or patterns
    column: str
    lenses: tuple[str, ...]  # of norm and tuned
    positions: str  # all or last
    top_k: int

    def __post_init__(self) -> None:
        if not self.lenses or not set(self.lenses) <= {"norm", "tuned"} or len(set(self.lenses)) < len(self.lenses):
            raise InputError(f"--lens is {','.join(self.lenses)!r}, must be norm, tuned or both. Nothing was written.")
        if self.positions not in ("all", "last"):
            raise InputError(f"--positions is {self.positions!r}, must be all or last. Nothing was written.")
        if self.top_k < 1:
            raise InputError(f"--top-k is {self.top_k}, must be at least 1. Nothing was written.")

    def schema(self, n_layers: int, d_vocab: int) -> pa.Schema:
        """The columns for a model of that many layers and tokens."""
        top_k = min(self.top_k, d_vocab)

        def lists(kind: pa.DataType) -> pa.DataType:
            return pa.list_(kind, n_layers + 1)

        return pa.schema(
            parts.COLUMNS
            | {"final_token_id": pa.int32(), "final_token": pa.string(), "lens": pa.string()}
            | dict.fromkeys(DEPTHS, pa.int16())
            | dict.fromkeys([name for name in MEASURED if name in BITS], lists(pa.float32()))
            | {
                "next_token_rank": lists(pa.int32()),
                "top_ids": lists(pa.list_(pa.int32(), top_k)),
                "top_p": lists(pa.list_(pa.float32(), top_k)),
            }
        )


@dataclass(frozen=True)
class Subject:
    """A lens with the model that it was fit to."""

    backbone: Backbone
    lens: LayeredLens
    encode: Encoder
    weights_sha256: str

    def layers(self, lens: str) -> Sequence[int]:
        """The layers of 0..L that a lens reads."""
        return self.lens.layers if lens == TUNED else range(self.backbone.n_layers + 1)

    @property
    def identity(self) -> dict[str, str | None]:
        """What a plan says of it."""
        return {"weights_sha256": self.weights_sha256, "model": self.backbone.model.name_or_path}

    @classmethod
    def load(cls, model: str, revision: str | None = None) -> Self:
        """A model of this lab by its key, or the one lens of a release: a folder, or a repository `org/name`.

        Raises:
            LensmithError: as `Bench.load` and `pretrained.find`.
        """
        if params_yaml.MODEL_KEY.fullmatch(model):
            corpus, folder = ARTIFACTS / model / "corpus", ARTIFACTS / model / "lens"
            seals.check(corpus, folder)
            bench = Bench.load(sections.read_resolved(RESOLVED / "models" / f"{model}.json"), corpus, folder)
            return cls(bench.backbone, bench.lens, bench.encode, bench.identity.weights_sha256)
        released = pretrained.find(model, revision=revision)
        lens, backbone = released.load(), released.load_model()
        pretrained.check_model(lens, backbone)
        assert backbone.tokenizer is not None  # a loaded model has one
        encode = Encoder(backbone.tokenizer, "tokenizer", backbone.model.config)
        sha256 = artifacts.sha256_file(released.folder / WEIGHTS)
        return cls(backbone, lens.to(backbone.device), encode, sha256)

    def table(self, request: Request, part: Part) -> pa.Table:
        """The rows that a request asks for of some texts."""
        backbone = self.backbone
        whole = part.encode(self.encode)
        ids = [text[: max_length(backbone.model.config)] for text in whole]
        places, found = self.read(request, ids)
        following = [next(iter(ids[text][pos + 1 : pos + 2]), None) for text, pos in places]
        tables = []
        for lens in request.lenses if places else ():
            at = self.layers(lens)
            final = found[lens, at[-1]].top.tolist()
            words = {token: word(backbone, token) for token in {*itertools.chain(*ids), *final}}
            row_columns = part.columns(places, whole, following, words) | {
                "final_token_id": final,
                "final_token": [words[token] for token in final],
                "lens": [lens] * len(places),
            }
            tables.append(row_columns | columns([found[lens, layer] for layer in at], at, following))
        schema = request.schema(backbone.n_layers, backbone.d_vocab)
        rows = pa.concat_tables([pa.table(each, schema=schema) for each in tables] or [schema.empty_table()])
        return rows.sort_by([(name, "ascending") for name in ("text", "pos", "lens")])

    @torch.inference_mode()
    def read(self, request: Request, ids: Sequence[Sequence[int]]) -> tuple[list[Place], dict[Name, Reading]]:
        """Every lens at every layer of the positions that are wanted, in the order of the places."""
        backbone, head = self.backbone, self.backbone.head
        readings = [(lens, layer) for lens in request.lenses for layer in self.layers(lens)]
        places, streams, found = list[Place](), list[Tensor](), list[dict[Name, Reading]]()

        def walk_over(waiting: list[Tensor], at: Sequence[Place]) -> None:
            following = torch.tensor([[*ids[text], 0][pos + 1] for text, pos in at], device=backbone.device)[:, None]
            reads = walk.head_reads(head, self.lens)
            found.append(walk.read(head, torch.cat(waiting), readings, reads, targets=following, top_k=request.top_k))

        n_walked = 0
        for batch in parts.batches(ids, request.positions, backbone):
            resid, at = parts.capture(backbone, ids, batch, request.positions)
            streams.append(resid)
            places += at
            if len(places) - n_walked >= ROWS.of(backbone.device):
                walk_over(streams, places[n_walked:])
                streams, n_walked = [], len(places)
        if streams:
            walk_over(streams, places[n_walked:])
        return places, {name: Reading.cat([each[name] for each in found]) for name in readings if found}


def write(out: Path, subject: Subject, request: Request) -> Counter[str]:
    """Read texts and write `out`. Returns and raises as `parts.write`."""
    tokenizer = subject.backbone.tokenizer
    assert tokenizer is not None  # it encoded nothing otherwise
    decides = asdict(request) | subject.identity
    table = partial(subject.table, request)
    return parts.write(out, request.texts, request.column, tokenizer, request=decides, table=table)


def columns(readings: Sequence[Reading], at: Sequence[int], following: Sequence[int | None]) -> dict[str, pa.Array]:
    """The columns of numbers of one lens at its layers, of n positions with the tokens that follow there."""
    top, ranks, measured = (
        torch.stack([getattr(reading, name) for reading in readings], 1).numpy()
        for name in ("top", "ranks", "measured")
    )
    by_name = {name: measured[..., MEASURED.index(name)] for name in BITS}
    top_ids, top_log_q = (
        torch.stack([getattr(reading, name) for reading in readings], 1) for name in ("top_ids", "top_log_q")
    )
    return {
        **depths(top, by_name["kl_final_lens_bits"], at),
        **{name: by_layer(values, np.float32, at) for name, values in by_name.items()},
        "next_token_rank": by_layer(ranks[..., 1], np.int32, at, absent=[token is None for token in following]),
        "top_ids": by_layer(top_ids.numpy(), np.int32, at),
        "top_p": by_layer(top_log_q.exp().numpy(), np.float32, at),
    }


def depths(top: NDArray[Any], kl_final_lens_bits: NDArray[Any], at: Sequence[int]) -> dict[str, pa.Array]:
    """DEPTHS of n positions, from the top tokens and KL (n, len(at)) of a lens at the layers that it reads."""
    holds = [top == top[:, -1:], *(kl_final_lens_bits <= bits for bits in COMMITTED_BITS)]
    layers = np.append(at, at[-1] + 1)
    return {name: pa.array(layers[settled(each)], type=pa.int16()) for name, each in zip(DEPTHS, holds, strict=True)}


def by_layer(values: NDArray[Any], kind: type[np.generic], at: Sequence[int], absent: ArrayLike = False) -> pa.Array:
    """A column of lists by layer 0..L, from values (n, len(at), ...) at the layers that were read, L the last of them.

    Args:
        absent: (n,), rows that have no value at any layer.
    """
    n = len(values)
    table = np.zeros((n, at[-1] + 1, *values.shape[2:]), dtype=kind)
    table[:, at] = values
    mask = np.ones(table.shape, dtype=bool)
    mask[:, at] = False
    mask[np.broadcast_to(absent, n)] = True
    array = pa.array(table.ravel(), mask=mask.ravel())
    for length in table.shape[:0:-1]:
        array = pa.FixedSizeListArray.from_arrays(array, length)
    return array


def settled(holds: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The first index of the last axis from which on all are true, its length where the last one is false."""
    n_settled = np.logical_and.accumulate(holds[..., ::-1], axis=-1).sum(-1)
    first: NDArray[np.int64] = holds.shape[-1] - n_settled
    return first
