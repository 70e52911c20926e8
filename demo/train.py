"""Train `atlas`, the bundled model, from scratch: tokenizer, weights, training log and card.

    python -m demo.train --tokens 30e6
    python -m demo.train --tokens 34.2e6 --from demo/atlas --out longer --seed 1 --lr 1e-3 --decay-from 0.3

The documents come fresh from `demo.world` and none is seen twice. The schedule is a function of the
share of the tokens that were read: a short warm-up, a constant rate, a linear decay to zero; blocks
grow from 128 to 512 tokens, because attention on short blocks is cheap and most facts are short.
Checkpoints lie in --state; a run that is started again with the same --state continues there. With
--from, a run begins with the weights, the tokenizer and the log of a trained model; another --seed
gives it other documents.

The work is shared by processes of one thread each, which add up their gradients in shared memory at
every step. Threads of one process would meet at hundreds of barriers in a step; when other programs
use the same cores, that made training ten times slower.
"""

import argparse
import contextlib
import csv
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from demo import build, card, exam
from demo.world import document, suite
from lensmith.source.skeleton import has_fast_bf16

ATLAS = Path(__file__).parent / "atlas"
CHECKPOINT = "checkpoint.pt"
TOKENS_PER_STEP = 2048
# (share of the tokens from which it holds, tokens in a block)
BLOCK_LENGTHS = ((0.0, 128), (0.75, 256), (0.94, 512))
CONTINUED_BLOCK = 256  # at least, in a run that begins with a trained model
PEAK_LR = 2e-3
WARMUP_STEPS = 200
DECAY_FROM = 0.87  # share of the tokens, of this run
KEEP_EVERY = 240.0  # seconds between checkpoints
WEIGHT_DECAY = 0.1
CLIP = 1.0  # gradient norm
LOG_COLUMNS = ("step", "tokens", "minutes", "lr", "train_loss", "heldout_loss", "suite_accuracy")


@dataclass
class Progress:
    """Where a run is; its model may have been trained by other runs before.

    A resumed run begins at a document that none of its workers has seen.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    first: int = 0  # tokens that the model had read when this run began

    @property
    def unseen(self) -> int:
        """A document number, for each worker, behind all that were read: no document has under 20 tokens."""
        return (self.tokens - self.first) // 20

    def share(self, end: int) -> float:
        """How much of this run is over."""
        return (self.tokens - self.first) / (end - self.first)


@dataclass(frozen=True)
class Place:
    """A worker's number, and what all workers share: gradients (workers, n_parameters), a barrier."""

    worker: int
    workers: int
    gradients: Tensor
    barrier: Barrier


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of the command line."""

    tokens: int  # that the model has read when the run ends
    trained: Path | None  # folder of the model that it begins with
    lr: float  # peak
    decay_from: float  # share of the tokens
    seed: int
    state: Path
    out: Path
    workers: int
    compiled: bool


def batches(tokenizer: PreTrainedTokenizerFast, seed: int, place: Place, first: int) -> Iterator[Tensor]:
    """Endless flat batches of one worker, (TOKENS_PER_STEP / workers,), from its document `first` on.

    Worker w takes the documents w, w + workers, ... of the stream.
    """
    size = TOKENS_PER_STEP // place.workers
    tokens: list[int] = []
    for start in count(first, 100):
        numbers = range(start, start + 100)
        tokens += exam.packed(tokenizer, [document(seed, n * place.workers + place.worker) for n in numbers])
        while len(tokens) >= size:
            yield torch.tensor(tokens[:size])
            del tokens[:size]


def learning_rate(settings: Settings, progress: Progress) -> float:
    """Warm-up by steps, then constant, then linear to zero at the end."""
    warmup = min(1.0, (progress.tokens - progress.first + TOKENS_PER_STEP) / (WARMUP_STEPS * TOKENS_PER_STEP))
    decay = min(1.0, max(0.0, 1 - progress.share(settings.tokens)) / (1 - settings.decay_from))
    return settings.lr * warmup * decay


def block_length(settings: Settings, progress: Progress) -> int:
    """Tokens in a block."""
    share = progress.share(settings.tokens)
    length = [length for start, length in BLOCK_LENGTHS if share >= start][-1]
    return max(length, CONTINUED_BLOCK) if progress.first else length


def new_optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """AdamW; norms' gains do not decay."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), fused=True)


def products() -> contextlib.AbstractContextManager[Any]:
    """Products in bfloat16 where the CPU has it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16(torch.device("cpu")))


def loss_function(model: LlamaForCausalLM, *, compiled: bool) -> Callable[[Tensor], Tensor]:
    """Mean next-token loss in nats of blocks (batch, length)."""

    def loss(blocks: Tensor) -> Tensor:
        logits = model(input_ids=blocks, use_cache=False).logits
        return functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), blocks[:, 1:].flatten())

    return torch.compile(loss, dynamic=False) if compiled else loss


class Run:
    """One worker's part of a training run. Worker 0 also examines, logs and keeps."""

    def __init__(self, settings: Settings, place: Place) -> None:
        """Load the state, which `prepare` has made if there was none."""
        self.settings, self.place = settings, place
        saved = torch.load(settings.state / CHECKPOINT, weights_only=True)  # noqa: TID251, its own checkpoint
        self.model = build.new_model(settings.seed)
        self.model.load_state_dict(saved["model"])
        if not has_fast_bf16(torch.device("cpu")):
            self.model.set_attn_implementation("sdpa")  # in float32 it is the faster one
        self.optimizer = new_optimizer(self.model)
        if saved["optimizer"]:
            self.optimizer.load_state_dict(saved["optimizer"])
        self.progress = Progress(**saved["progress"])
        self.parameters = list(self.model.parameters())
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(settings.state / "tokenizer")
        self.batches = batches(self.tokenizer, settings.seed, place, self.progress.unseen)
        self.loss = loss_function(self.model, compiled=settings.compiled)
        if place.worker == 0:
            self.heldout = exam.heldout_blocks(self.tokenizer, 32, 256)
            self.questions = suite()

    def share_gradients(self) -> None:
        """Replace each worker's gradients by their mean over the workers."""
        place = self.place
        flat = torch.cat([p.grad.flatten() for p in self.parameters])
        place.gradients[place.worker].copy_(flat)
        place.barrier.wait()
        mean = place.gradients.mean(0)
        for p, part in zip(self.parameters, mean.split([p.numel() for p in self.parameters]), strict=True):
            p.grad = part.view_as(p)
        place.barrier.wait()  # the next step writes where another worker may still read

    def take_step(self) -> float:
        """One batch, one update; the loss of this worker's part in nats."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.progress)
        with products():
            loss = self.loss(next(self.batches).view(-1, block_length(self.settings, self.progress)))
        loss.backward()
        self.share_gradients()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        self.progress.tokens += TOKENS_PER_STEP
        return loss.item()

    def keep(self, train_loss: float) -> None:
        """Examine the model, log it, write the checkpoint and the model as it is now."""
        with products():
            heldout = exam.heldout_loss(self.model, self.heldout)
            right = exam.answered(self.model, self.tokenizer, self.questions)
        p = self.progress
        lr = learning_rate(self.settings, p)
        row = (p.step, p.tokens, f"{p.seconds / 60:.1f}", f"{lr:.2e}")
        scores = (f"{train_loss:.4f}", f"{heldout:.4f}", f"{sum(right) / len(right):.4f}")
        write_log(self.settings.out, row + scores)
        print(*row, *scores, flush=True)
        write_checkpoint(self.settings.state, self.model, self.optimizer.state_dict(), p)
        build.export(self.model, self.tokenizer, self.settings.out)

    def train(self) -> None:
        """Train until all tokens are read; worker 0 keeps the state from time to time."""
        mean, last, clock = float("nan"), self.progress.seconds, time.monotonic()
        while self.progress.tokens < self.settings.tokens:
            loss = self.take_step()
            mean = 0.98 * mean + 0.02 * loss if mean == mean else loss  # noqa: PLR0124 (NaN before the first step)
            now = time.monotonic()
            self.progress.seconds, clock = self.progress.seconds + now - clock, now
            if self.place.worker == 0 and self.progress.seconds - last > KEEP_EVERY:
                last = self.progress.seconds
                self.keep(mean)
        if self.place.worker == 0:
            self.keep(mean)


def write_log(folder: Path, row: tuple[object, ...], mode: str = "a") -> None:
    """Append one row to the training log of a model's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "training_log.csv").open(mode, newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(row)


def write_checkpoint(state: Path, model: LlamaForCausalLM, optimizer: dict[str, Any], progress: Progress) -> None:
    """Write all that a resumed run needs, atomically."""
    saved = {"model": model.state_dict(), "optimizer": optimizer, "progress": asdict(progress)}
    torch.save(saved, state / f"{CHECKPOINT}.tmp")
    (state / f"{CHECKPOINT}.tmp").replace(state / CHECKPOINT)


def prepare(settings: Settings) -> int:
    """Make a first checkpoint, tokenizer and log unless they are there; the number of parameters."""
    model, progress = build.new_model(settings.seed), Progress()
    if not (settings.state / CHECKPOINT).exists():
        settings.state.mkdir(parents=True, exist_ok=True)
        if settings.trained is None:
            build.new_tokenizer(settings.seed).save_pretrained(settings.state / "tokenizer")
            write_log(settings.out, LOG_COLUMNS, mode="w")
        else:
            model = LlamaForCausalLM.from_pretrained(settings.trained, dtype=torch.float32)
            PreTrainedTokenizerFast.from_pretrained(settings.trained).save_pretrained(settings.state / "tokenizer")
            progress = take_log(settings.trained, settings.out)
        write_checkpoint(settings.state, model, {}, progress)
    return sum(p.numel() for p in model.parameters())


def take_log(trained: Path, out: Path) -> Progress:
    """Continue the training log of a model in another folder; where its training ended."""
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(shutil.SameFileError):
        shutil.copyfile(trained / "training_log.csv", out / "training_log.csv")
    with (out / "training_log.csv").open(newline="") as file:
        *_, last = csv.DictReader(file)
    tokens = int(last["tokens"])
    return Progress(int(last["step"]), tokens, float(last["minutes"]) * 60, first=tokens)


def work(worker: int, settings: Settings, gradients: Tensor, barrier: Barrier) -> None:
    """One worker process, from beginning to end."""
    torch.set_num_threads(1)
    Run(settings, Place(worker, settings.workers, gradients, barrier)).train()


def main() -> None:
    """Train, then write the card."""
    cli = argparse.ArgumentParser(description="Train the bundled model atlas.")
    cli.add_argument("--tokens", type=float, default=30e6, help="tokens that it has read in the end (default 30e6)")
    cli.add_argument("--from", dest="trained", type=Path, help="folder of a trained model to begin with")
    cli.add_argument("--lr", type=float, default=PEAK_LR, help=f"peak rate (default {PEAK_LR:g})")
    cli.add_argument("--decay-from", type=float, default=DECAY_FROM, help="share at which the rate begins to fall")
    cli.add_argument("--seed", type=int, default=0, help="stream of training documents, and initial weights")
    cli.add_argument("--state", type=Path, default=Path(".lensmith/atlas-train"), help="folder for checkpoints")
    cli.add_argument("--out", type=Path, default=ATLAS, help="folder of the model")
    cli.add_argument("--workers", type=int, default=2, help="processes, one core each (default 2)")
    cli.add_argument("--no-compile", dest="compiled", action="store_false", help="do without torch.compile")
    arguments = vars(cli.parse_args())
    settings = Settings(**arguments | {"tokens": int(arguments["tokens"])})

    n_parameters = prepare(settings)
    context = mp.get_context("spawn")
    gradients = torch.zeros(settings.workers, n_parameters).share_memory_()
    mp.spawn(work, (settings, gradients, context.Barrier(settings.workers)), nprocs=settings.workers)
    torch.set_num_threads(1)  # see the top: threads do not share cores well
    card.write(settings.out)


if __name__ == "__main__":
    main()
