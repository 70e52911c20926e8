"""Train `atlas`, the bundled model, from scratch: tokenizer, weights, training log and card.

    python -m demo.train --minutes 65

The documents come fresh from `demo.world` and none is seen twice. The schedule is a function of the
elapsed share of the time: a short warm-up, a constant rate, a linear decay to zero; blocks grow from
128 to 512 tokens, because attention on short blocks is cheap and most facts are short. Checkpoints
lie in --state; a run that is started again with the same --state continues there.

The work is shared by processes of one thread each, which add up their gradients in shared memory at
every step. Threads of one process would meet at hundreds of barriers in a step; when other programs
use the same cores, that made training ten times slower.
"""

import argparse
import csv
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

ATLAS = Path(__file__).parent / "atlas"
CHECKPOINT = "checkpoint.pt"
TOKENS_PER_STEP = 2048
# (share of the time from which it holds, tokens in a block)
BLOCK_LENGTHS = ((0.0, 128), (0.75, 256), (0.94, 512))
PEAK_LR = 2e-3
WARMUP_STEPS = 200
DECAY_FROM = 0.87  # share of the time
WEIGHT_DECAY = 0.1
CLIP = 1.0  # gradient norm
LOG_COLUMNS = ("step", "tokens", "minutes", "lr", "train_loss", "heldout_loss", "suite_accuracy")


@dataclass
class Progress:
    """Where a run is. A resumed run begins at a document that none of its workers has seen."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def unseen(self) -> int:
        """A document number, for each worker, behind all that were read: no document has under 20 tokens."""
        return self.tokens // 20


@dataclass(frozen=True)
class Place:
    """A worker's number, and what all workers share: gradients (workers, n_parameters), a clock, a barrier."""

    worker: int
    workers: int
    gradients: Tensor
    seconds: Tensor  # (1,), of training so far; written by worker 0
    barrier: Barrier


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of the command line."""

    minutes: float
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


def learning_rate(step: int, share: float) -> float:
    """Warm-up by steps, then constant, then linear to zero at share 1 of the time."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    decay = min(1.0, max(0.0, 1 - share) / (1 - DECAY_FROM))
    return PEAK_LR * warmup * decay


def block_length(share: float) -> int:
    """Tokens in a block at a share of the time."""
    return [length for start, length in BLOCK_LENGTHS if share >= start][-1]


def new_optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """AdamW; norms' gains do not decay."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), fused=True)


def loss_function(model: LlamaForCausalLM, *, compiled: bool) -> Callable[[Tensor], Tensor]:
    """Mean next-token loss in nats of blocks (batch, length); products in bfloat16."""

    def loss(blocks: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=blocks, use_cache=False).logits
        return functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), blocks[:, 1:].flatten())

    return torch.compile(loss, dynamic=False) if compiled else loss


class Run:
    """One worker's part of a training run. Worker 0 also examines, logs and keeps."""

    def __init__(self, settings: Settings, place: Place) -> None:
        """Load the state, which `prepare` has made if there was none."""
        self.settings, self.place = settings, place
        self.limit = settings.minutes * 60  # seconds
        saved = torch.load(settings.state / CHECKPOINT, weights_only=True)  # noqa: TID251, its own checkpoint
        self.model = build.new_model(settings.seed)
        self.model.load_state_dict(saved["model"])
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

    def take_step(self) -> float:
        """One batch, one update; the loss of this worker's part in nats."""
        share = self.progress.seconds / self.limit
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.progress.step, share)
        loss = self.loss(next(self.batches).view(-1, block_length(share)))
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
        with torch.autocast("cpu", torch.bfloat16):
            heldout = exam.heldout_loss(self.model, self.heldout)
            right = exam.answered(self.model, self.tokenizer, self.questions)
        p = self.progress
        lr = learning_rate(p.step, p.seconds / self.limit)
        row = (p.step, p.tokens, f"{p.seconds / 60:.1f}", f"{lr:.2e}")
        scores = (f"{train_loss:.4f}", f"{heldout:.4f}", f"{sum(right) / len(right):.4f}")
        write_log(self.settings.out, row + scores)
        print(*row, *scores, flush=True)
        write_checkpoint(self.settings.state, self.model, self.optimizer.state_dict(), p)
        build.export(self.model, self.tokenizer, self.settings.out)

    def train(self, every: float = 240.0) -> None:
        """Train until the time is over; worker 0 keeps the state every so many seconds."""
        seconds, chief = self.place.seconds, self.place.worker == 0
        seconds[0] = self.progress.seconds
        mean, last, clock = float("nan"), self.progress.seconds, time.monotonic()
        while self.progress.seconds < self.limit:
            loss = self.take_step()
            mean = 0.98 * mean + 0.02 * loss if mean == mean else loss  # noqa: PLR0124 (NaN before the first step)
            if chief:
                seconds += time.monotonic() - clock
                clock = time.monotonic()
            # Every worker must see the same time, or their rates and block lengths would differ.
            self.place.barrier.wait()
            self.progress.seconds = float(seconds)
            if chief and self.progress.seconds - last > every:
                last = self.progress.seconds
                self.keep(mean)
        if chief:
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
    """Make a first checkpoint and a tokenizer unless they are there; the number of parameters."""
    model = build.new_model(settings.seed)
    if not (settings.state / CHECKPOINT).exists():
        settings.state.mkdir(parents=True, exist_ok=True)
        build.new_tokenizer(settings.seed).save_pretrained(settings.state / "tokenizer")
        write_log(settings.out, LOG_COLUMNS, mode="w")
        write_checkpoint(settings.state, model, {}, Progress())
    return sum(p.numel() for p in model.parameters())


def work(worker: int, settings: Settings, gradients: Tensor, seconds: Tensor, barrier: Barrier) -> None:
    """One worker process, from beginning to end."""
    torch.set_num_threads(1)
    Run(settings, Place(worker, settings.workers, gradients, seconds, barrier)).train()


def main() -> None:
    """Train, then write the card."""
    cli = argparse.ArgumentParser(description="Train the bundled model atlas.")
    cli.add_argument("--minutes", type=float, default=65.0, help="wall-clock time of the training (default 65)")
    cli.add_argument("--seed", type=int, default=0, help="stream of training documents, and initial weights")
    cli.add_argument("--state", type=Path, default=Path(".lensmith/atlas-train"), help="folder for checkpoints")
    cli.add_argument("--out", type=Path, default=ATLAS, help="folder of the model")
    cli.add_argument("--workers", type=int, default=2, help="processes, one core each (default 2)")
    cli.add_argument("--no-compile", dest="compiled", action="store_false", help="do without torch.compile")
    settings = Settings(**vars(cli.parse_args()))

    n_parameters = prepare(settings)
    context = mp.get_context("spawn")
    shared = torch.zeros(settings.workers, n_parameters).share_memory_(), torch.zeros(1).double().share_memory_()
    mp.spawn(work, (settings, *shared, context.Barrier(settings.workers)), nprocs=settings.workers)
    torch.set_num_threads(1)  # see the top: threads do not share cores well
    card.write(settings.out, minutes=settings.minutes, seed=settings.seed)


if __name__ == "__main__":
    main()
