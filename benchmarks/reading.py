"""What reading costs: one vector through a lens, and a data set against the model's bare forward pass.

one vector     `Reader.read` at a middle layer, after the first call; beside it the product with W_U, and a sum over
               W_U, which reads all of it and does next to nothing else: no reading can take less
a data set     `lensmith read --positions last`, from texts to parquet, with each choice of lenses; beside it the
               base model alone over the same batches. Texts are windows of this repository's pages.

python -m benchmarks.reading MODEL LENS     folders of a transformers model and of a lens (weights.safetensors)
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import lensmith
from benchmarks import common
from lensmith.lens.lens import Lens
from lensmith.read import dataset, parts
from lensmith.read.dataset import Request, Subject
from lensmith.read.reader import Reader
from lensmith.source.tokenizer import Encoder

COLUMNS = ("case", "cpu_ms", "spread", "ratio", "gb_per_s")
LENSES = (("tuned",), ("norm", "tuned"))


def main(arguments: Sequence[str] | None = None) -> None:
    cli = common.parser(__doc__)
    cli.add_argument("model", type=Path)
    cli.add_argument("lens", type=Path)
    cli.add_argument("--texts", type=int, default=256, help="texts of the data set; 0 for none")
    cli.add_argument("--tokens", type=int, default=64, help="of a text")
    args = common.parsed(cli, arguments)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    reader = lensmith.bind(Lens.load(args.lens), model, tokenizer, strict=False)
    n_texts, repeats = (4, 2) if args.quick else (args.texts, 20)

    vector = common.in_turns(of_a_vector(reader), repeats)
    with tempfile.TemporaryDirectory() as folder:
        texts = write_texts(Path(folder) / "texts.jsonl", reader, n_texts, args.tokens)
        cases = of_a_data_set(reader, texts) if n_texts else {}
        of_texts = {name: common.Timing((common.seconds(work),)) for name, work in cases.items()}  # minutes: once
    size = reader.backbone.head.W_U.nbytes
    rows: list[tuple[object, ...]] = []
    for timings, base, passes in ((vector, "a sum over W_U", size / 1e9), (of_texts, "the base model alone", None)):
        for name, timing in timings.items():
            ratio, rate = timing.median / timings[base].median, passes and passes / timing.median
            rows.append((name, 1000 * timing.median, timing.spread, ratio, rate))
    head = f"W_U has {size / 1e6:.0f} MB; {n_texts} texts of {args.tokens} tokens. Ratios are to a kind's last case."
    common.publish(args.out, "reading", "Reading", [head, common.table(COLUMNS, rows)], COLUMNS, rows)


def of_a_vector(reader: Reader) -> dict[str, Callable[[], object]]:
    """One vector: the reading, its product, its least."""
    backbone = reader.backbone
    W_U, layer = backbone.head.W_U, round(0.4 * backbone.n_layers)
    tokens = torch.arange(1, 9)[None]
    resid = backbone.capture(tokens, torch.arange(8)[None])[0, -1, layer]
    y = reader.lens.head_reads(backbone.head, resid[None], layer).y
    return {
        "one vector": lambda: reader.read(resid, layer=layer),
        "its product with W_U": lambda: nn.functional.linear(y, W_U),
        "a sum over W_U": W_U.sum,
    }


def write_texts(path: Path, reader: Reader, count: int, n_tokens: int) -> Path:
    """Windows of this repository's pages as texts of so many tokens, or a few less where words meet otherwise."""
    tokenizer = reader.backbone.tokenizer
    assert tokenizer is not None  # it was given
    pages = sorted((common.REPOSITORY / "docs").glob("*.md"))
    ids = tokenizer("\n".join(page.read_text("utf-8") for page in pages), add_special_tokens=False)["input_ids"]
    windows = [ids[start : start + n_tokens] for start in range(0, len(ids) - n_tokens, n_tokens)][:count]
    path.write_text("".join(json.dumps({"text": tokenizer.decode(window)}) + "\n" for window in windows))
    return path


def of_a_data_set(reader: Reader, texts: Path) -> dict[str, Callable[[], object]]:
    """The texts read with each choice of lenses, and the base model alone over the same batches."""
    backbone = reader.backbone
    assert backbone.tokenizer is not None  # it was given
    encode = Encoder(backbone.tokenizer, "tokenizer", backbone.model.config)
    subject, runs = Subject(backbone, reader.lens, encode, ""), iter(range(100))

    def read(lenses: tuple[str, ...]) -> None:
        request = Request((str(texts),), "text", lenses, "last", 5)
        dataset.write(texts.parent / f"{next(runs)}.parquet", subject, request)

    ids = [encode(json.loads(line)["text"]) for line in texts.read_text().splitlines()]

    @torch.inference_mode()
    def forward() -> None:
        for batch in parts.batches(ids, "last", backbone):
            longest = max(len(ids[text]) for text in batch)
            tokens = torch.tensor([[*ids[text], *[0] * (longest - len(ids[text]))] for text in batch])
            backbone.model.base_model(tokens, use_cache=False)

    reading = {f"lensmith read --lens {','.join(lenses)}": partial(read, lenses) for lenses in LENSES}
    return {**reading, "the base model alone": forward}


if __name__ == "__main__":
    main()
