"""Jobs as Ray tasks. The only file that imports Ray.

A task is given to a node that has the CPUs, GPUs and memory that it asks for, and runs there to its end or the node's.
Ray itself tries nothing again: `driver` does, and says so. Lines come back through a mailbox, an actor without needs.
"""

import logging
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lensmith.fleet import work
from lensmith.fleet.jobs import Job, Machine, Tree
from lensmith.fleet.work import Outcome
from lensmith.process import stopping
from lensmith.process.errors import InputError

try:
    import ray
    from ray import exceptions
except ImportError:
    raise InputError("ray is not installed. `pip install 'lensmith[ray]'`, here and on every node.") from None

WAIT = 0.5  # seconds for a job to end before somebody looks at the lines


class Mailbox:
    """Lines on their way to the head, by sender. They are kept: an answer that comes too late must not take lines
    with it, and after a restart every sender gives its own again.
    """

    def __init__(self) -> None:
        self._senders: dict[str, tuple[str, list[str]]] = {}

    def put(self, sender: str, model: str, begin: int, lines: Sequence[str]) -> int:
        """Keep lines of which the first is the sender's line `begin`; how many of its lines are here, without a gap."""
        _, held = self._senders.setdefault(sender, (model, []))
        if begin <= len(held):
            held[begin:] = lines
        return len(held)

    def after(self, seen: Mapping[str, int]) -> list[tuple[str, str, list[str]]]:
        """(sender, model, lines) beyond the `seen` first ones of each sender."""
        return [(sender, model, lines[seen.get(sender, 0) :]) for sender, (model, lines) in self._senders.items()]


class Outbox:
    """The lines of one job, each of them handed over before the next one: Ray drops a call that nobody waits for
    when it fails. They wait on a future: in `ray.get`, a task's CPUs are another one's.
    """

    def __init__(self, job: Job, mailbox: Any) -> None:
        self._model, self._mailbox = job.model, mailbox
        self._sender = uuid.uuid4().hex
        self._lines: list[str] = []
        self._held = 0

    def say(self, line: str) -> None:
        self._lines.append(line)
        while self._held < len(self._lines):
            begin = self._held
            put = self._mailbox.put.remote(self._sender, self._model, begin, self._lines[begin:])
            self._held = put.future().result()


def perform(job: Job, tree: Tree, mailbox: Any) -> Outcome:
    """The body of a task."""
    outbox = Outbox(job, mailbox)
    outcome = work.run(job, tree, outbox.say)
    outbox.say(f"{job.name}: ended with {outcome.code}")
    return outcome


class RayCluster:
    """A Ray cluster: `local` starts one here, `auto` joins the one that runs here, `ray://host:port` one elsewhere.

    Raises:
        InputError: there is none at the address.
    """

    def __init__(self, address: str, tree: Tree) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
        try:
            ray.init(
                address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False if address == "local" else None,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise InputError(
                f"--address {address}: {reason}. `ray start --head` starts a cluster, `ray start --address HEAD:6379` "
                "joins a node; or --address local. Nothing was started."
            ) from None
        stopping.install()  # Ray takes TERM for itself
        self._tree = tree
        self._running: dict[Any, Job] = {}
        self._seen: Counter[str] = Counter()  # lines, by sender
        here = ray.get_runtime_context().get_node_id()
        near = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=True)
        kept = {"max_restarts": -1, "max_task_retries": -1}  # a line waits until there is a mailbox again
        self._mailbox: Any = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=near, **kept).remote()

    def machines(self) -> Sequence[Machine]:
        return [
            Machine(node["NodeName"], held.get("CPU", 0), held.get("GPU", 0), held.get("memory", 0))
            for node in ray.nodes()  # type: ignore[no-untyped-call]
            if node["Alive"]
            for held in [node["Resources"]]
        ]

    def submit(self, job: Job) -> None:
        needs = job.needs
        task = ray.remote(max_retries=0, num_cpus=needs.cpus, num_gpus=needs.gpus, memory=needs.memory or 0)(perform)
        self._running[task.remote(job, self._tree, self._mailbox)] = job

    def ended(self) -> Iterator[tuple[Job, Outcome]]:
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=WAIT)
        for reference in ready:
            yield self._running.pop(reference), _outcome(reference)

    def lines(self) -> Iterator[tuple[str, str]]:
        try:
            found = ray.get(self._mailbox.after.remote(self._seen), timeout=10)
        except exceptions.RayError:  # busy, or on a machine that is gone: then it starts again elsewhere
            return
        for sender, model, lines in found:
            self._seen[sender] += len(lines)
            yield from ((model, line) for line in lines)

    def cancel(self) -> None:
        for reference in self._running:
            ray.cancel(reference, force=True)

    @staticmethod
    def close() -> None:
        ray.shutdown()


def _outcome(reference: Any) -> Outcome:
    try:
        outcome: Outcome = ray.get(reference)
    except exceptions.RayTaskError as error:
        return Outcome(1, f"{error.cause!r}")
    except exceptions.RayError as error:  # the node or the process is gone: Ray has a class for each way
        return work.lost(f"{type(error).__name__}: the node or its process is gone")
    return outcome
