"""What a lens fit on text that the model writes loses on real text, and the reverse.

The same model, recipe, number of tokens and number of held-out sequences; only the text differs. Each lens is judged on
the held-out text of both kinds at the same positions of the same sequences, so that differences are paired.

    python -m benchmarks.sampled_text MODEL TEXT

MODEL is a folder of a model, TEXT a file of documents. Numbers are the mean KL(final || lens) in bits over layers
1..L-1 and held-out positions, with an interval over sequences.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import common
from lensmith.files import artifacts
from lensmith.judge import bootstrap, heldout
from lensmith.judge.bench import Bench
from lensmith.judge.judgement import Estimate
from lensmith.lens import stage
from lensmith.process.draws import Stream
from lensmith.settings import params_yaml
from lensmith.settings.sections import ModelParams
from lensmith.source import corpus, prefetch

KINDS = {"real": "files", "sampled": "sampled"}
COLUMNS = ("fit_on", "judged_on", "lens", "kl_bits", "lo", "hi", "sequences")
CONFIDENCE, SAMPLES = 0.95, 2000


def settings_of(kind: str, model: Path, text: Path, tokens: int, seqs: int, fit: dict[str, Any]) -> ModelParams:
    """The shipped recipe on one kind of text, at rank 64 and without a ladder."""
    data = params_yaml.read(common.REPOSITORY / "params.yaml")["atlas"].model_dump()
    seq_len, validation = 256, 8
    data["source"] |= {"path": str(model), "repo": None}
    data["corpus"] |= {
        "kind": KINDS[kind],
        "files": [str(text)] if kind == "real" else [],
        "seq_len": seq_len,
        "train_tokens": tokens,
        "heldout_tokens": (seqs + validation) * seq_len,
    }
    data["fit"] |= {"rank": 64, "ladder": [], "positions_per_seq": 64, "epochs": 4, "batch_seqs": 4, "lr": 2e-3}
    data["fit"] |= {"validation_seqs": validation, "validate_every": 32} | fit
    data["sweep"] |= {"heldout_seqs": seqs, "positions_per_seq": 16}
    return ModelParams.model_validate(data)


def fitted(settings: ModelParams, folder: Path) -> dict[str, float]:
    """Corpus and lens of one kind of text, below `folder`; CPU seconds of both."""
    (folder / "corpus").mkdir(parents=True)
    (folder / "lens").mkdir()
    artifacts.write_json(folder / "code.json", {})
    text = common.seconds(lambda: prefetch.build(settings, folder / "corpus"))
    return {
        "text": text,
        "fit": common.seconds(lambda: stage.run(settings, folder / "code.json", folder / "corpus", folder / "lens")),
    }


def measured(settings: ModelParams, lens: Path, text: Path) -> dict[str, np.ndarray]:
    """Mean KL of norm and tuned lens in each held-out sequence of a text, over layers 1..L-1: (n_seqs,)."""
    bench = Bench.load(settings, text / "corpus", lens / "lens")
    first = settings.fit.validation_seqs
    tokens = torch.from_numpy(corpus.read_heldout(text / "corpus")[first:].astype(np.int64))
    values = heldout.measure(bench, tokens, settings.sweep, first).values
    layers = range(1, bench.n_layers)
    return {
        name: np.stack([values[name, layer][..., heldout.KL] for layer in layers]).mean(axis=(0, 2))
        for name in ("norm", "tuned")
    }


def estimate(values: np.ndarray) -> Estimate:
    """The mean over sequences and its interval."""
    draws = bootstrap.draw(range(len(values)), SAMPLES, Stream(316, "sampled-text"))
    return bootstrap.estimate(bootstrap.mean, values, draws, CONFIDENCE)


def main(arguments: Sequence[str] | None = None) -> None:
    cli = common.parser(__doc__)
    cli.add_argument("model", type=Path, help="folder of a model")
    cli.add_argument("text", type=Path, help="file of documents")
    cli.add_argument("--tokens", type=int, default=32_768, help="that each lens is fit on")
    cli.add_argument("--seqs", type=int, default=16, help="held-out sequences of each text")
    options = common.parsed(cli, arguments)
    tokens, seqs = (2_048, 4) if options.quick else (options.tokens, options.seqs)
    common.WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=common.WORK) as work:
        folders = {kind: Path(work, kind) for kind in KINDS}
        settings = {
            kind: settings_of(kind, options.model, options.text, tokens, seqs, common.settings_of(options.set))
            for kind in KINDS
        }
        costs = {kind: fitted(settings[kind], folders[kind]) for kind in KINDS}
        kl = {(fit, text): measured(settings[fit], folders[fit], folders[text]) for text in KINDS for fit in KINDS}
    rows: list[tuple[object, ...]] = []
    for text in KINDS:
        cells = {("-", "norm lens"): kl["real", text]["norm"]}
        cells |= {(fit, "tuned lens"): kl[fit, text]["tuned"] for fit in KINDS}
        other = next(kind for kind in KINDS if kind != text)
        cells[other, "what it loses to the lens of that text"] = kl[other, text]["tuned"] - kl[text, text]["tuned"]
        for (fit, lens), values in cells.items():
            mean = estimate(values)
            rows.append((fit, text, lens, mean.value, mean.lo, mean.hi, len(values)))
    seconds = "; ".join(
        f"{kind} {cost['text']:.0f} s of text, {cost['fit']:.0f} s of fit" for kind, cost in costs.items()
    )
    explained = (
        f"Mean KL(final || lens) in bits over layers 1..L-1, 95 % intervals over {seqs} sequences of 256 tokens. Each "
        f"lens: rank 64, {tokens:,} tokens. CPU: {seconds}."
    )
    common.publish(
        options.out,
        "sampled_text",
        "Text that the model writes, and real text",
        [
            explained,
            common.table(COLUMNS, rows),
        ],
        COLUMNS,
        rows,
    )


if __name__ == "__main__":
    main()
