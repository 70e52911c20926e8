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

Texts are read in parts of a few hundred, each a file of its own until all are there, so that a run that was stopped
goes on. Within a part, texts of like length share a forward pass. They are padded on the right, which no causal model
sees from the left of it.
"""

import itertools
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from lensmith.files import artifacts, names, seals
from lensmith.judge import walk
from lensmith.judge.bench import Bench
from lensmith.judge.tables import DISTANCES, TUNED
from lensmith.judge.walk import MEASURED, ROWS, LayeredLens, Name, Reading
from lensmith.lab.layout import ARTIFACTS, RESOLVED
from lensmith.lens.lens_file import WEIGHTS
from lensmith.process import stopping
from lensmith.process.errors import InputError
from lensmith.process.progress import Progress
from lensmith.read.text import word
from lensmith.release import pretrained
from lensmith.settings import params_yaml, sections
from lensmith.source import documents, text_files
from lensmith.source.backbone import Backbone
from lensmith.source.chats import ChatRenderer
from lensmith.source.configuration import max_length
from lensmith.source.documents import Document, SourceRow
from lensmith.source.residuals import CAPTURE_TOKENS
from lensmith.source.tokenizer import Encoder

PART_TEXTS = 256
CAPTURE_BYTES = 2**29  # of the residuals that one forward pass gives
COMMITTED_BITS = (0.1, 0.5, 1.0)
BITS = DISTANCES[:3]
PLAN = "plan.json"


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


class Place(NamedTuple):
    """A position that is read."""

    text: int  # index in its part
    pos: int


def write(out: Path, subject: Subject, request: Request) -> Counter[str]:
    """Read texts and write `out`; what an earlier run of the same request left in `out`.parts is not read again.

    Returns:
        The number of texts that were `read`, and of the others by reason.

    Raises:
        InputError: `out` exists, `out`.parts is of another request, or a file cannot be read.
        Interrupted: a signal came; what is finished is kept.
    """
    if out.exists():
        raise InputError(f"{out}: exists. Nothing was written.")
    files = names.files(request.texts, "--texts")
    for file in files:
        text_files.check_readable(str(file), "--texts")
    plan = asdict(request) | {
        "texts": [[str(file), artifacts.sha256_file(file)] for file in files],
        "weights_sha256": subject.weights_sha256,
        "model": subject.backbone.model.name_or_path,
    }
    parts = out.with_name(f"{out.name}.parts")
    _resume(parts, artifacts.parse_json(artifacts.canonical_json(plan)))
    counts, written = Counter[str](), list[Path]()
    total = sum(1 for _ in _rows(files, request.column))
    assert subject.backbone.tokenizer is not None  # it encoded nothing otherwise
    render = ChatRenderer(subject.backbone.tokenizer)
    texts = enumerate(documents.clean(_rows(files, request.column), sys.maxsize, render))
    with Progress("read", total, "text") as progress, stopping.deferred() as stop:
        while part := list(itertools.islice(texts, PART_TEXTS)):
            counts.update(document.skipped or "read" for _, document in part)
            path = parts / f"{len(written):06d}.parquet"
            if not path.exists():
                table = _table(subject, request, [str(file) for file in files], part)
                with artifacts.replacing(path) as temporary:
                    pq.write_table(table, temporary, compression="zstd")
            written.append(path)
            progress.advance(len(part))
            if stop.signal is not None:
                kept = f"{sum(counts.values())} of {total} texts are kept in {parts}; the same command goes on"
                raise stopping.Interrupted(stop.signal, kept)
    if not counts["read"]:
        raise InputError(f"--texts: no text can be read of {total}: {dict(counts)}. {out} was not written.")
    _join(written, out, plan)
    shutil.rmtree(parts)
    return counts


def _resume(parts: Path, plan: object) -> None:
    path = parts / PLAN
    if not path.exists():
        artifacts.write_json(path, plan)
    elif artifacts.read_json(path) != plan:
        raise InputError(f"{parts}: holds parts of another request ({PLAN}). Remove it, or choose another --out.")


def _join(parts: Sequence[Path], out: Path, plan: dict[str, Any]) -> None:
    schema = pq.read_schema(parts[0]).with_metadata({"lensmith": artifacts.canonical_json(plan)})
    with artifacts.replacing(out) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for part in parts:
            writer.write_table(pq.read_table(part).cast(schema))


def _rows(files: Sequence[Path], column: str) -> Iterator[SourceRow]:
    for index, path in enumerate(files):
        with path.open("rb") as file:
            for number, value in enumerate(text_files.values(file, str(path), column)):
                yield SourceRow(index, number, value)


def _table(subject: Subject, request: Request, files: Sequence[str], part: Sequence[tuple[int, Document]]) -> pa.Table:
    """The rows of some texts, which are given with their numbers."""
    backbone, encode = subject.backbone, subject.encode
    usable = [(number, document) for number, document in part if not document.skipped]
    whole = [
        encode.documents([document.text], rendered=True)[0] if document.is_chat else encode(document.text)
        for _, document in usable
    ]
    ids = [text[: max_length(backbone.model.config)] for text in whole]
    places, found = _read(subject, request, ids)
    following = [next(iter(ids[text][pos + 1 : pos + 2]), None) for text, pos in places]
    tables = []
    for lens in request.lenses if places else ():
        at = subject.layers(lens)
        final = found[lens, at[-1]].top.tolist()
        words = {token: word(backbone, token) for token in {*itertools.chain(*ids), *final}}
        columns = {
            "text": [usable[text][0] for text, _ in places],
            "file": [files[usable[text][1].file] for text, _ in places],
            "row": [usable[text][1].row for text, _ in places],
            "n_tokens": [len(whole[text]) for text, _ in places],
            "pos": [pos for _, pos in places],
            "token_id": [ids[text][pos] for text, pos in places],
            "token": [words[ids[text][pos]] for text, pos in places],
            "next_token_id": following,
            "final_token_id": final,
            "final_token": [words[token] for token in final],
            "lens": [lens] * len(places),
        }
        tables.append(columns | _columns([found[lens, layer] for layer in at], at, following))
    schema = _schema(backbone.n_layers, min(request.top_k, backbone.d_vocab))
    rows = pa.concat_tables([pa.table(columns, schema=schema) for columns in tables] or [schema.empty_table()])
    return rows.sort_by([(name, "ascending") for name in ("text", "pos", "lens")])


@torch.inference_mode()
def _read(subject: Subject, request: Request, ids: Sequence[Sequence[int]]) -> tuple[list[Place], dict[Name, Reading]]:
    """Every lens at every layer of the positions that are wanted, in the order of the places."""
    backbone, head = subject.backbone, subject.backbone.head
    readings = [(lens, layer) for lens in request.lenses for layer in subject.layers(lens)]
    places, streams, parts = list[Place](), list[Tensor](), list[dict[Name, Reading]]()

    def walk_over(waiting: list[Tensor], at: Sequence[Place]) -> None:
        following = torch.tensor([[*ids[text], 0][pos + 1] for text, pos in at], device=backbone.device)[:, None]
        reads = walk.head_reads(head, subject.lens)
        parts.append(walk.read(head, torch.cat(waiting), readings, reads, targets=following, top_k=request.top_k))

    n_walked = 0
    for batch in _batches(ids, request.positions, backbone):
        resid, at = _capture(backbone, ids, batch, request.positions)
        streams.append(resid)
        places += at
        if len(places) - n_walked >= ROWS.of(backbone.device):
            walk_over(streams, places[n_walked:])
            streams, n_walked = [], len(places)
    if streams:
        walk_over(streams, places[n_walked:])
    return places, {name: Reading.cat([part[name] for part in parts]) for name in readings if parts}


def _batches(ids: Sequence[Sequence[int]], positions: str, backbone: Backbone) -> Iterator[list[int]]:
    """Indices of texts that share a forward pass, longest first."""
    budget = CAPTURE_TOKENS.of(backbone.device)
    if positions == "all":
        bytes_per_token = (backbone.n_layers + 1) * backbone.d_model * backbone.dtype.itemsize
        budget = min(budget, CAPTURE_BYTES // bytes_per_token)
    batch: list[int] = []
    for index in sorted((i for i, text in enumerate(ids) if text), key=lambda i: -len(ids[i])):
        if batch and (len(batch) + 1) * len(ids[batch[0]]) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _capture(
    backbone: Backbone, ids: Sequence[Sequence[int]], batch: Sequence[int], positions: str
) -> tuple[Tensor, list[Place]]:
    """Residuals (n, L + 1, d_model) of a batch of texts at the positions that are wanted, and these."""
    longest = max(len(ids[text]) for text in batch)
    tokens = torch.tensor([[*ids[text], *[0] * (longest - len(ids[text]))] for text in batch])
    if positions == "last":
        places = [Place(text, len(ids[text]) - 1) for text in batch]
        return backbone.capture(tokens, torch.tensor([[pos] for _, pos in places]))[:, 0], places
    resid = backbone.capture(tokens, torch.arange(longest).expand_as(tokens))
    is_text = torch.tensor([[pos < len(ids[text]) for pos in range(longest)] for text in batch])
    return resid[is_text.to(resid.device)], [Place(text, pos) for text in batch for pos in range(len(ids[text]))]


def _columns(readings: Sequence[Reading], at: Sequence[int], following: Sequence[int | None]) -> dict[str, pa.Array]:
    """The columns of numbers of one lens at its layers, of n positions with the tokens that follow there."""
    n, n_layers = len(following), at[-1] + 1  # with the embedding
    unread = np.ones((n, n_layers), dtype=bool)
    unread[:, at] = False

    def by_layer(values: list[Tensor], kind: type[np.generic], absent: NDArray[np.bool_] = unread) -> pa.Array:
        table = np.zeros((n, n_layers, *values[0].shape[1:]), dtype=kind)
        table[:, at] = torch.stack(values, 1).numpy()
        mask = np.broadcast_to(absent.reshape(*absent.shape, *[1] * (table.ndim - 2)), table.shape)
        array = pa.array(table.ravel(), mask=mask.ravel())
        for length in table.shape[:0:-1]:
            array = pa.FixedSizeListArray.from_arrays(array, length)
        return array

    measured = {name: [reading.measured[:, MEASURED.index(name)] for reading in readings] for name in BITS}
    agrees = np.stack([(reading.top == readings[-1].top).numpy() for reading in readings], 1)
    kl = torch.stack(measured["kl_final_lens_bits"], 1).numpy()
    depths = {"prediction_depth": agrees} | {f"commitment_depth_{bits}_bits": kl <= bits for bits in COMMITTED_BITS}
    at_end = unread | np.array([token is None for token in following])[:, None]
    return {
        **{name: pa.array(np.append(at, n_layers)[settled(holds)], type=pa.int16()) for name, holds in depths.items()},
        **{name: by_layer(values, np.float32) for name, values in measured.items()},
        "next_token_rank": by_layer([reading.ranks[:, 1] for reading in readings], np.int32, at_end),
        "top_ids": by_layer([reading.top_ids for reading in readings], np.int32),
        "top_p": by_layer([reading.top_log_q.exp() for reading in readings], np.float32),
    }


def settled(holds: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The first index of the last axis from which on all are true, its length where the last one is false."""
    n_settled = np.logical_and.accumulate(holds[..., ::-1], axis=-1).sum(-1)
    first: NDArray[np.int64] = holds.shape[-1] - n_settled
    return first


def _schema(n_layers: int, top_k: int) -> pa.Schema:
    def by_layer(kind: pa.DataType) -> pa.DataType:
        return pa.list_(kind, n_layers + 1)

    return pa.schema(
        {
            "text": pa.int64(), "file": pa.string(), "row": pa.int64(), "n_tokens": pa.int32(), "pos": pa.int32(),
            "token_id": pa.int32(), "token": pa.string(), "next_token_id": pa.int32(), "final_token_id": pa.int32(),
            "final_token": pa.string(), "lens": pa.string(), "prediction_depth": pa.int16(),
            **{f"commitment_depth_{bits}_bits": pa.int16() for bits in COMMITTED_BITS},
            **{name: by_layer(pa.float32()) for name in MEASURED if name in BITS},
            "next_token_rank": by_layer(pa.int32()), "top_ids": by_layer(pa.list_(pa.int32(), top_k)),
            "top_p": by_layer(pa.list_(pa.float32(), top_k)),
        }
    )  # fmt: skip
