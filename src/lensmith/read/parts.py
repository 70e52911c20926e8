"""Texts of files, read in parts into one parquet file, so that a run that was stopped goes on.

A part is a few hundred texts. Each is a file of its own until all are there; then they are joined, a row group each.
Within a part, texts of like length share a forward pass. They are padded on the right, which no causal model sees from
the left of it.
"""

import itertools
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lensmith.files import artifacts, names
from lensmith.process import stopping
from lensmith.process.errors import InputError
from lensmith.process.progress import Progress
from lensmith.source import documents, text_files
from lensmith.source.backbone import Backbone
from lensmith.source.chats import ChatRenderer
from lensmith.source.documents import Document, SourceRow
from lensmith.source.residuals import CAPTURE_TOKENS
from lensmith.source.tokenizer import Encoder

PART_TEXTS = 256
CAPTURE_BYTES = 2**29  # of the residuals that one forward pass gives
PLAN = "plan.json"
# Of every row: the text's number, and where it stands; its tokens; the position, what stands there, and what follows.
COLUMNS = {
    "text": pa.int64(), "file": pa.string(), "row": pa.int64(), "n_tokens": pa.int32(), "pos": pa.int32(),
    "token_id": pa.int32(), "token": pa.string(), "next_token_id": pa.int32(),
}  # fmt: skip


class Place(NamedTuple):
    """A position that is read."""

    text: int  # index in its part
    pos: int


@dataclass(frozen=True)
class Part:
    """Texts that are read together, in their order."""

    files: Sequence[str]
    texts: Sequence[tuple[int, Document]]  # with their numbers

    def encode(self, encode: Encoder) -> list[list[int]]:
        """The ids of each text."""
        return [
            encode.documents([document.text], rendered=True)[0] if document.is_chat else encode(document.text)
            for _, document in self.texts
        ]

    def columns(
        self, places: Sequence[Place], whole: Sequence[Sequence[int]], following: Sequence[int | None],
        words: Mapping[int, str],
    ) -> dict[str, Any]:  # fmt: skip
        """COLUMNS of some positions, of texts with the ids `whole`."""
        return {
            "text": [self.texts[text][0] for text, _ in places],
            "file": [self.files[self.texts[text][1].file] for text, _ in places],
            "row": [self.texts[text][1].row for text, _ in places],
            "n_tokens": [len(whole[text]) for text, _ in places],
            "pos": [pos for _, pos in places],
            "token_id": [whole[text][pos] for text, pos in places],
            "token": [words[whole[text][pos]] for text, pos in places],
            "next_token_id": following,
        }


@dataclass(frozen=True)
class PartFiles:
    """Parts of one request on disk, beside the file that they become."""

    folder: Path
    plan: str  # everything that decides their bytes, JSON

    def resume(self) -> None:
        """Record the plan. InputError where the folder holds parts of another one."""
        path, plan = self.folder / PLAN, artifacts.parse_json(self.plan)
        if not path.exists():
            artifacts.write_json(path, plan)
        elif artifacts.read_json(path) != plan:
            raise InputError(
                f"{self.folder}: holds parts of another request ({PLAN}). Remove it, or choose another --out."
            )

    def join(self, written: Sequence[Path], out: Path) -> None:
        """Write all parts as one file, and remove them."""
        schema = pq.read_schema(written[0]).with_metadata({"lensmith": self.plan})
        with artifacts.replacing(out) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for part in written:
                writer.write_table(pq.read_table(part).cast(schema))
        shutil.rmtree(self.folder)


def write(
    out: Path,
    patterns: Sequence[str],
    column: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    request: Mapping[str, Any],
    table: Callable[[Part], pa.Table],
) -> Counter[str]:
    """Read texts and write `out`; what an earlier run of the same request left in `out`.parts is not read again.

    Args:
        patterns: files, or patterns of files, whose texts or chats are in `column`.
        tokenizer: the one whose template renders chats.
        request: everything else that decides what `table` makes of a part.

    Returns:
        The number of texts that were `read`, and of the others by reason.

    Raises:
        InputError: `out` exists, `out`.parts is of another request, or a file cannot be read.
        Interrupted: a signal came; what is finished is kept.
    """
    if out.exists():
        raise InputError(f"{out}: exists. Nothing was written.")
    files = names.files(patterns, "--texts")
    for file in files:
        text_files.check_readable(str(file), "--texts")
    hashes = [[str(file), artifacts.sha256_file(file)] for file in files]
    plan = artifacts.canonical_json({**request, "column": column, "texts": hashes})
    parts = PartFiles(out.with_name(f"{out.name}.parts"), plan)
    parts.resume()
    counts, written = Counter[str](), list[Path]()
    total = sum(1 for _ in _rows(files, column))
    texts = enumerate(documents.clean(_rows(files, column), sys.maxsize, ChatRenderer(tokenizer)))
    with Progress("read", total, "text") as progress, stopping.deferred() as stop:
        while batch := list(itertools.islice(texts, PART_TEXTS)):
            counts.update(document.skipped or "read" for _, document in batch)
            path = parts.folder / f"{len(written):06d}.parquet"
            if not path.exists():
                part = Part([str(file) for file in files], [each for each in batch if not each[1].skipped])
                with artifacts.replacing(path) as temporary:
                    pq.write_table(table(part), temporary, compression="zstd")
            written.append(path)
            progress.advance(len(batch))
            if stop.signal is not None:
                kept = f"{sum(counts.values())} of {total} texts are kept in {parts.folder}; the same command goes on"
                raise stopping.Interrupted(stop.signal, kept)
    if not counts["read"]:
        raise InputError(f"--texts: no text can be read of {total}: {dict(counts)}. {out} was not written.")
    parts.join(written, out)
    return counts


def batches(ids: Sequence[Sequence[int]], positions: str, backbone: Backbone) -> Iterator[list[int]]:
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


def capture(
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


def _rows(files: Sequence[Path], column: str) -> Iterator[SourceRow]:
    for index, path in enumerate(files):
        with path.open("rb") as file:
            for number, value in enumerate(text_files.values(file, str(path), column)):
                yield SourceRow(index, number, value)
