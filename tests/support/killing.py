"""Scenarios that interrupt a fit, run it again and compare its bytes.

They run in a fork of the process that asks (`run`), where torch is imported and no other thread runs, and each round in
a fork of that one. The fit is small but has every part of a
large one: some layers a step, an optimizer, a closed-form start, and validations that fall, rise and end it early.
"""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lensmith.lens import checkpoint, training
from lensmith.lens.checkpoint import Checkpoints, State
from lensmith.lens.lens import Lens
from lensmith.process import environment, stopping
from lensmith.process.errors import LensmithError
from lensmith.source import tensor_file
from lensmith.source.head import Head, Transform
from lensmith.source.residuals import Batch
from tests.support import hardware
from tests.support.held_rows import HeldRows
from tests.support.settings import fit_params

L, D, V, P = 4, 12, 23, 6
STEPS = 16  # of which early stopping leaves a dozen
# Held-out rows are distributed otherwise than training rows: the fit passes the best map for them.
COMMON = {
    "batch_seqs": 4,
    "epochs": 1,
    "validate_every": 1,
    "patience": 9,
    "lr": 0.05,
    "layers_per_step": 2,
    "warmup": 0.2,
    "weight_decay": 0.01,
}
MUON = {"rank": 4, "optimizer": "muon", "start": "norm_lens", "coordinates": "plain", "smooth_depth": 1e-3}
FORMS = {
    "adamw": fit_params(**COMMON | {"rank": 4, "lr": 0.008, "patience": 5}),
    "muon": fit_params(**COMMON | MUON),
    "bias": fit_params(**COMMON | {"kind": "bias"}),
    "bf16": fit_params(
        **COMMON | {"rank": 4, "lr": 0.008, "patience": 5}
    ),  # as adamw, on a processor with bfloat16 products
}


@dataclass
class CountedRows(HeldRows):
    """Rows that count tokens at each reading, as streamed ones do."""

    def read(self, seqs) -> Batch:
        self.tokens_forwarded += 7 * len(seqs)
        return super().read(seqs)


def _rows(n_seqs: int, seed: int, towards: float) -> CountedRows:
    maps = torch.randn(L, D, D, generator=torch.Generator().manual_seed(7)) * 0.15 + torch.eye(D)
    last = torch.randn(n_seqs * P, D, generator=torch.Generator().manual_seed(seed))
    resid = torch.stack([*(last @ maps[layer] for layer in range(L - 1)), last], 1)
    return CountedRows(resid.lerp(last[:, None], towards), P)


def fit(folder: Path, form: str = "adamw") -> str:
    """The fit, from its newest checkpoint on; everything that it gives, hashed."""
    settings = FORMS[form]
    head = Head(
        torch.randn(V, D, generator=torch.Generator().manual_seed(0)), None, Transform(), nn.Identity(), (None,) * L, ""
    )
    train, held_out, start = _rows(4 * STEPS, 1, 0.0), _rows(16, 2, 0.3), Lens.start(settings, L, D)
    opened.append(Checkpoints(folder))
    result = training.fit(head, train, held_out, settings, start, checkpoints=opened[-1])
    digest = hashlib.sha256()
    for _, tensor in sorted(result.lens.tensors().items()):
        digest.update(tensor.numpy().tobytes())
    numbers = (result.steps, result.best_step, result.stopped_early, result.positions_used, result.tokens_forwarded)
    digest.update(repr((result.log, *numbers, result.best, result.ridge)).encode())
    return digest.hexdigest()


def child(work: Callable[[], str]) -> tuple[int, str]:
    """Run `work` in a fork; its exit code, or minus its signal, and what it returned or raised."""
    reading, writing = os.pipe()
    if pid := os.fork():
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said
    with os.fdopen(writing, "w") as pipe:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115, until this process ends
        try:
            pipe.write(work())
            code = 0
        except (LensmithError, stopping.Interrupted) as error:
            pipe.write(str(error))
            code = error.exit_code
        except Exception:  # noqa: BLE001 (whatever it was, the round says so)
            pipe.write(traceback.format_exc())
            code = 1
        pipe.flush()
    os._exit(code)


opened: list[Checkpoints] = []


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_step(step: int) -> None:
    """Die when the fit would take this step."""

    def last() -> None:
        opened[-1].wait()  # a kill during a write is another scenario
        die()

    before_step(step, last)


def interrupted_at_step(step: int, number: int) -> None:
    """Send a signal while the fit takes this step."""
    stopping.install()
    before_step(step, lambda: signal.raise_signal(number))


def before_step(step: int, act: Callable[[], None]) -> None:
    """Call `act` when the fit begins this step."""
    gradients = training.step_gradients

    def watched(task, coordinates, trained, batch, at):
        if at == step:
            act()
        return gradients(task, coordinates, trained, batch, at)

    training.step_gradients = watched


OPERATIONS = (("tempfile", "mkstemp"), ("os", "fsync"), ("os", "replace"), ("os", "unlink"))


def wait_for_writes() -> None:
    """Write each checkpoint before the next step, so that their number does not depend on the machine's speed."""
    save = Checkpoints.save
    Checkpoints.save = lambda self, state, wait=False: save(self, state, wait=True)


def fail_at_write(number: int, act: Callable[[], None]) -> None:
    """Call `act` before the number-th operation of a write: create, half the bytes, sync, rename, sync, unlink."""
    count = 0

    def counted(real):
        def operation(*args, **kwargs):
            nonlocal count
            count += 1
            if count == number:
                act()
            return real(*args, **kwargs)

        return operation

    def halved(real):
        def save(tensors, path, **kwargs):
            nonlocal count
            count += 1
            real(tensors, path, **kwargs)
            if count == number:
                os.truncate(path, os.path.getsize(path) // 2)  # noqa: PTH202, as the others
                act()

        return save

    wait_for_writes()
    for module, name in OPERATIONS:
        setattr(sys.modules[module], name, counted(getattr(sys.modules[module], name)))
    tensor_file.save_file = halved(tensor_file.save_file)
    counts.append(lambda: count)


counts: list[Callable[[], int]] = []


def no_space() -> None:
    raise OSError(28, "No space left on device")


@dataclass
class Trial:
    """Rounds of one scenario, each in a folder of its own."""

    name: str
    form: str = "adamw"

    def __post_init__(self) -> None:
        self.rounds, self.wrong = 0, []
        self.root = Path(tempfile.mkdtemp(prefix="killing-"))
        self.whole = self.run(self.root / "whole")[1]

    def run(self, folder: Path, before: Callable[[], object] = lambda: None) -> tuple[int, str]:
        def work() -> str:
            before()
            return fit(folder, self.form)

        return child(work)

    def broken(self, ends: Callable[[int], bool], before: Callable[[], object], note: object = "") -> Path:
        """One round that `before` interrupts; `ends` judges its exit code. Returns its folder."""
        folder = self.root / str(self.rounds)
        self.rounds += 1
        code, said = self.run(folder, before)
        if not ends(code):
            self.wrong.append(f"{note}: ended with {code} {said}")
        return folder

    def healed(self, folder: Path, note: object = "") -> None:
        """Run the fit again: it must give the same bytes, and leave one checkpoint and the log that people watch."""
        code, said = self.run(folder)
        if (code, said) != (0, self.whole):
            self.wrong.append(f"{note}: gave {code} {said[-300:]}, not {self.whole[:8]}")
        left = {path.name for path in folder.iterdir() if not path.name.startswith(("bad-", ".tmp-"))}
        if left != {checkpoint.FINISHED, checkpoint.FIT_LOG}:
            self.wrong.append(f"{note}: left {sorted(path.name for path in folder.iterdir())}")

    def result(self) -> dict[str, object]:
        shutil.rmtree(self.root)
        return {"name": self.name, "rounds": self.rounds, "wrong": self.wrong}


def killed(code: int) -> bool:
    return code == -signal.SIGKILL


def survived_or_told(code: int) -> bool:
    """A full disk is exit code 7; 0 where only the removal of an old file failed."""
    return code in (0, 7)


def steps(trial: Trial) -> None:
    """SIGKILL before every step that the fit takes."""
    _, facts = tensor_file.read(trial.root / "whole" / checkpoint.FINISHED)
    scores = [sum(row[f"val_kl_bits_{depth}"] for depth in (25, 50, 75)) for row in facts["log"]]
    falls_and_rises = scores[0] > min(scores) and scores != sorted(scores, reverse=True)
    # Of a bias alone the curve goes on falling after it has risen; that a fit ends early is seen with the others.
    ends_early = trial.form == "bias" or facts["step"] < STEPS
    if not (falls_and_rises and ends_early and facts["best_step"] > 1):
        trial.wrong.append(f"the curve must fall, rise and end the fit early: {scores}")
    for step in range(facts["step"]):
        trial.healed(trial.broken(killed, lambda step=step: die_at_step(step), step), step)
    if trial.run(trial.root / "whole", lambda: setattr(training, "train_steps", die)) != (0, trial.whole):
        trial.wrong.append("a fit that was over took a step")


def signals(trial: Trial) -> None:
    """TERM and INT in turn, during every step: the step is finished, and the exit code says which."""
    _, facts = tensor_file.read(trial.root / "whole" / checkpoint.FINISHED)
    for step in range(facts["step"] - 1):
        number = (signal.SIGTERM, signal.SIGINT)[step % 2]
        ends = lambda code, number=number: code == 128 + number  # noqa: E731
        folder = trial.broken(ends, lambda step=step, number=number: interrupted_at_step(step, number), step)
        if max(folder.glob("step-*")).stem != f"step-{step + 1:08d}":
            trial.wrong.append(f"{step}: the checkpoint is not of the step that was under way")
        trial.healed(folder, step)


def writes(trial: Trial, act: Callable[[], None], ends: Callable[[int], bool], some: slice) -> None:
    """A fault before the n-th file operation of a fit, for every n."""
    total = int(
        child(lambda: (fail_at_write(0, die), fit(trial.root / "counted", trial.form), str(counts[0]()))[-1])[1]
    )
    for number in list(range(1, total + 1))[some]:
        trial.healed(trial.broken(ends, lambda number=number: fail_at_write(number, act), number), number)


def some_writes(trial: Trial) -> None:
    """Kill before all operations of the second and the third checkpoint and of the last file."""
    writes(trial, die, killed, slice(8, 22))


def every_write(trial: Trial) -> None:
    writes(trial, die, killed, slice(None))


def full_disk_at_some_writes(trial: Trial) -> None:
    writes(trial, no_space, survived_or_told, slice(9, 19, 2))


def full_disk_at_every_write(trial: Trial) -> None:
    writes(trial, no_space, survived_or_told, slice(None))


def at_random(trial: Trial) -> None:
    """Three fits, killed 17 times in all at random moments."""
    draws, folder = random.Random(0), trial.root / "random"
    while trial.rounds < 17:
        folder = trial.root / str(trial.rounds // 6)  # six kills for each fit

        def timed() -> None:
            signal.signal(signal.SIGALRM, die)
            signal.setitimer(signal.ITIMER_REAL, draws.uniform(0.002, 0.12))

        code, _ = trial.run(folder, timed)
        draws.random()
        trial.rounds += 1
        if code not in (0, -signal.SIGKILL):
            trial.wrong.append(f"round {trial.rounds}: ended with {code}")
    for number in range(3):
        trial.healed(trial.root / str(number), number)


def flipped_bits(trial: Trial) -> None:
    """Flip one bit of the newest checkpoint, in its header or its data; then one of both checkpoints."""
    for share in (0.0, 0.01, 0.2, 0.5, 0.8, 0.999):
        for spoiled in (1, 2):
            folder = trial.broken(killed, lambda: (wait_for_writes(), die_at_step(6)), share)
            for path in sorted(folder.glob("step-*"))[-spoiled:]:
                data = bytearray(path.read_bytes())
                data[int(share * len(data))] ^= 4
                path.write_bytes(data)
            trial.healed(folder, (share, spoiled))
            if len(list(folder.glob("bad-*"))) != spoiled:
                trial.wrong.append(f"{share}, {spoiled}: {sorted(path.name for path in folder.iterdir())}")


def file_size_limit(trial: Trial) -> None:
    """The kernel limits the size of files, as for a user with a quota."""
    for limit in (100, 2000, 8000):
        before = lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: E731
        folder = trial.broken(lambda code: code == 7, before, limit)
        trial.healed(folder, limit)


def tmpfs(trial: Trial) -> None:
    """A full file system of 80 KiB; skipped where none may be mounted."""
    mount = trial.root / "small"
    mount.mkdir()
    options = ["-t", "tmpfs", "-o", "size=80k", "tmpfs", str(mount)]
    if subprocess.run(["mount", *options], check=False, capture_output=True).returncode:
        return
    try:
        filler = mount / "filler"
        filler.write_bytes(b"\0" * 56_000)
        trial.rounds += 1
        checkpoint.shutil.disk_usage = lambda _: shutil._ntuple_diskusage(
            10**9, 0, 10**9
        )  # past what is seen before step 0
        code, said = trial.run(mount / "fit")
        if code != 7 or "No space left" not in said or list((mount / "fit").glob(".tmp-*")):
            trial.wrong.append(f"ended with {code} {said}")
        filler.unlink()
        trial.healed(mount / "fit")
    finally:
        subprocess.run(["umount", str(mount)], check=False)


FORGETFUL: dict[str, Callable[[State], object]] = {
    "trained tensors": lambda state: [tensor.zero_() for name, tensor in state.trained.items() if name == "U"],
    "first moments": lambda state: [leaf["exp_avg"].zero_() for leaf in state.optimizers[-1].values()],
    "second moments": lambda state: [leaf["exp_avg_sq"].zero_() for leaf in state.optimizers[-1].values()],
    "step of the optimizer": lambda state: [leaf["step"].zero_() for leaf in state.optimizers[-1].values()],
    "state of a layer": lambda state: state.optimizers[-1].pop(0),
    "step": lambda state: setattr(state, "step", state.step - 1),
    "best lens": lambda state: [tensor.zero_() for tensor in state.best_lens.tensors().values()],
    "best score": lambda state: setattr(state, "best", type(state.best)(tuple(9.0 for _ in state.best.kl_bits))),
    "best step": lambda state: setattr(state, "best_step", 0),
    "patience": lambda state: setattr(state, "waited", 0),
    "log": lambda state: setattr(state, "log", state.log[:1]),
    "ridge": lambda state: setattr(state, "ridge", None),
    "tokens": lambda state: setattr(state, "tokens_forwarded", 0),
}


def mutants(trial: Trial) -> None:
    """A fit that loses one piece of its state must end in other bytes, after some step at least."""
    _, facts = tensor_file.read(trial.root / "whole" / checkpoint.FINISHED)
    cut = [trial.broken(killed, lambda step=step: die_at_step(step), step) for step in range(2, facts["step"])]
    trial.rounds = 0
    for piece, forget in FORGETFUL.items():
        trial.rounds += 1
        if not any(_is_caught(trial, folder, forget) for folder in cut):
            trial.wrong.append(f"nobody noticed that it forgot: {piece}")


def _is_caught(trial: Trial, folder: Path, forget: Callable[[State], object]) -> bool:
    copy = trial.root / "mutant"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    unpacked = State.unpacked

    def forgetful(*args):
        state = unpacked(*args)
        if not state.finished:
            forget(state)
        return state

    return trial.run(copy, lambda: setattr(State, "unpacked", forgetful)) != (0, trial.whole)


def by_cadence(trial: Trial) -> None:
    """The moments of checkpoints change no byte."""
    for seconds in ("0", "0.01", "0.03", "240"):
        trial.rounds += 1
        code, said = trial.run(
            trial.root / seconds, lambda seconds=seconds: os.environ.update({environment.CHECKPOINT_SECONDS: seconds})
        )
        if (code, said) != (0, trial.whole):
            trial.wrong.append(f"every {seconds} s: {code} {said}")


def scenarios() -> Iterator[tuple[str, Callable[[Trial], None]]]:
    for found in (
        steps,
        signals,
        some_writes,
        every_write,
        full_disk_at_some_writes,
        full_disk_at_every_write,
        at_random,
    ):
        yield found.__name__, found
    for found in (flipped_bits, file_size_limit, tmpfs, mutants, by_cadence):
        yield found.__name__, found


def run(*names: str) -> list[dict[str, object]]:
    """What each <scenario>[:<form>] found: {"name", "rounds", "wrong": [...]}."""
    code, said = child(lambda: json.dumps([_found(name) for name in names]))
    assert code == 0, said
    return json.loads(said)


def _found(asked: str) -> dict[str, object]:
    torch.set_num_threads(1)
    os.environ[environment.CHECKPOINT_SECONDS] = "0"
    name, _, form = asked.partition(":")
    hardware.force(form if form in hardware.CAPABILITIES else "none")
    trial = Trial(asked, form or "adamw")
    dict(scenarios())[name](trial)
    return trial.result()
