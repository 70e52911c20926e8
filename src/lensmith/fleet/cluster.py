"""Jobs as Ray tasks. The only file that imports Ray.

Ray gives a task to a node that has the CPUs, GPUs and memory that it needs. The task runs there until it or the node
ends. Ray retries nothing: `driver` does, and prints it. Lines come back through a mailbox, an actor that needs no CPU.
"""

import logging
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lensmith.fleet import work
from lensmith.fleet.jobs import Job, LabCommit, Node
from lensmith.fleet.work import Outcome
from lensmith.process import stopping
from lensmith.process.errors import InputError

try:
    import ray
    from ray import exceptions
except ImportError:
    raise InputError("ray is not installed. `pip install 'lensmith[ray]'`, here and on every node.") from None

WAIT = 0.5  # seconds to wait for the end of a job before lines are read


class Mailbox:
    """Lines on their way to the head, by sender.

    It forgets none: the answer that carries lines may be lost, and after a restart every sender sends its own again.
    """

    def __init__(self) -> None:
        self._senders: dict[str, tuple[str, list[str]]] = {}

    def put(self, sender: str, model: str, begin: int, lines: Sequence[str]) -> int:
        """Store lines, the first of which is the sender's line `begin`; the number of its lines here, without a gap."""
        _, stored = self._senders.setdefault(sender, (model, []))
        if begin <= len(stored):
            stored[begin:] = lines
        return len(stored)

    def after(self, seen: Mapping[str, int]) -> list[tuple[str, str, list[str]]]:
        """(sender, model, lines) after the first `seen` lines of each sender."""
        return [(sender, model, lines[seen.get(sender, 0) :]) for sender, (model, lines) in self._senders.items()]


class Outbox:
    """Sends the lines of one job, each before the next one: Ray drops a failed call that nobody waits for.

    It waits on a future, since Ray lends the CPUs of a task that waits in `ray.get` to another task.
    """

    def __init__(self, job: Job, mailbox: Any) -> None:
        self._model, self._mailbox = job.model, mailbox
        self._sender = uuid.uuid4().hex
        self._lines: list[str] = []
        self._sent = 0

    def send(self, line: str) -> None:
        """Hand a line to the mailbox, and every line that it lost."""
        self._lines.append(line)
        while self._sent < len(self._lines):
            begin = self._sent
            put = self._mailbox.put.remote(self._sender, self._model, begin, self._lines[begin:])
            self._sent = put.future().result()


def perform(job: Job, lab: LabCommit, mailbox: Any) -> Outcome:
    """The body of a task."""
    outbox = Outbox(job, mailbox)
    outcome = work.run(job, lab, outbox.send)
    outbox.send(f"{job.name}: ended with {outcome.code}")
    return outcome


class RayCluster:
    """A Ray cluster: `local` starts one here, `auto` joins the one that runs here, `ray://host:port` one elsewhere.

    Raises:
        InputError: there is no cluster at the address.
    """

    def __init__(self, address: str, lab: LabCommit) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends no statistics
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
        self._lab = lab
        self._running: dict[Any, Job] = {}
        self._seen: Counter[str] = Counter()  # lines, by sender
        head_id = ray.get_runtime_context().get_node_id()
        on_head = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(head_id, soft=True)
        restarts = {"max_restarts": -1, "max_task_retries": -1}  # a line waits until there is a mailbox again
        self._mailbox: Any = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=on_head, **restarts).remote()

    def nodes(self) -> Sequence[Node]:
        """The nodes that are up."""
        return [
            Node(node["NodeName"], has.get("CPU", 0), has.get("GPU", 0), has.get("memory", 0))
            for node in ray.nodes()  # type: ignore[no-untyped-call]
            if node["Alive"]
            for has in [node["Resources"]]
        ]

    def submit(self, job: Job) -> None:
        """Run a job on a node that meets its needs, once there is room."""
        needs = job.needs
        task = ray.remote(max_retries=0, num_cpus=needs.cpus, num_gpus=needs.gpus, memory=needs.memory or 0)(perform)
        self._running[task.remote(job, self._lab, self._mailbox)] = job

    def ended(self) -> Iterator[tuple[Job, Outcome]]:
        """The jobs that ended since the last call; waits a moment for one."""
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=WAIT)
        for reference in ready:
            try:
                outcome: Outcome = ray.get(reference)
            except exceptions.RayTaskError as error:
                outcome = Outcome(1, f"{error.cause!r}")
            except exceptions.RayError as error:  # Ray has a class for each way in which a node or process is lost
                outcome = Outcome(work.KILLED, f"{type(error).__name__}: the node or its process is gone")
            yield self._running.pop(reference), outcome

    def lines(self) -> Iterator[tuple[str, str]]:
        """(model, line) of what jobs printed since the last call."""
        try:
            unread = ray.get(self._mailbox.after.remote(self._seen), timeout=10)
        except exceptions.RayError:  # the mailbox is busy, or its node is gone and it restarts on another
            return
        for sender, model, lines in unread:
            self._seen[sender] += len(lines)
            yield from ((model, line) for line in lines)

    def cancel(self) -> None:
        """Stop every job that runs or waits."""
        for reference in self._running:
            ray.cancel(reference, force=True)

    @staticmethod
    def close() -> None:
        """Leave the cluster; one that was started here ends."""
        ray.shutdown()
