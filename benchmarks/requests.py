"""What S3 sees: requests of DVC's commands for labs of several models, counted by a server on loopback.

The lab is that of `benchmarks.overhead`: the real dvc.yaml, stages that write a few bytes. Counts depend on how many
objects there are, not on their size, below the 50 MiB from which a client sends parts.

    push of one       `dvc push` of a model's four heavy stages, as a node of the fleet does
    the same again    nothing is new
    push of all       `dvc push --run-cache`, what is left
    the same again    nothing is new
    pull              `dvc pull` in a fresh clone
    restore           `dvc repro --pull` in a fresh clone without dvc.lock: all comes out of the run-cache
"""

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import Request, urlopen

from benchmarks import common
from benchmarks.overhead import FIRST, HEAVY, Lab

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
METHODS = ("GET", "HEAD", "PUT", "POST")
COLUMNS = ("models", "objects", "command", *METHODS)


class Counted:
    """A WSGI application that counts requests by method."""

    def __init__(self, app: Any) -> None:
        self.app, self.seen = app, Counter[str]()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.seen[environ["REQUEST_METHOD"]] += 1
        answer: Iterable[bytes] = self.app(environ, start_response)
        return answer


@contextmanager
def served() -> Iterator[tuple[Counted, str]]:
    """An S3 on loopback, and its URL."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log(self, *_: object) -> None:
            pass

    app = Counted(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Silent)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield app, f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()


def main(arguments: Sequence[str] | None = None) -> None:
    cli = common.parser(__doc__)
    cli.add_argument("--models", nargs="+", type=int, default=[1, 5, 20])
    args = common.parsed(cli, arguments)
    if args.quick:
        args.models = [1]
    os.environ.update(KEYS)
    rows = []
    with tempfile.TemporaryDirectory() as folder, served() as (app, url):
        lab = Lab.real(Path(folder) / "lab")
        for n_models in args.models:
            lab.models = {f"m{i:03}": 8 for i in range(n_models)}
            lab.write_params()
            lab.run("dvc", "repro")
            rows += measured(lab, Path(folder), app, url, n_models)
            print(rows[-6:], file=sys.stderr)
    text = [common.table(COLUMNS, rows)]
    common.publish(args.out, "requests", "What S3 sees", text, COLUMNS, rows)


def measured(lab: Lab, folder: Path, app: Counted, url: str, n_models: int) -> list[list[Any]]:
    """The rows of a lab of so many models, each with a bucket of its own."""
    bucket, rows = f"lab-{n_models}", []
    urlopen(Request(f"{url}/{bucket}", method="PUT")).close()  # noqa: S310
    for words in (
        ("add", "--default", "--force", "store", f"s3://{bucket}/x"),
        ("modify", "store", "endpointurl", url),
    ):
        lab.run("dvc", "remote", *words)
    objects = sum(path.is_file() for path in (lab.root / ".dvc" / "cache").rglob("*"))
    git = ("git", "-c", "user.name=lab", "-c", "user.email=lab@example.org")
    lab.run("git", "add", "--all")
    lab.run(*git, "commit", "--quiet", "--message", "lab")
    clones = [folder / f"{name}-{n_models}" for name in ("pull", "restore")]

    def counted(name: str, root: Path, *command: str) -> str:
        app.seen.clear()
        said = Lab(root, "", set()).run(*command)
        rows.append([n_models, objects, name, *(app.seen[method] for method in METHODS)])
        return said

    heavy = [f"{name}@{FIRST}" for name in ("prefetch", *HEAVY)]
    counted("push of one", lab.root, "dvc", "push", "--run-cache", *heavy)
    counted("the same again", lab.root, "dvc", "push", "--run-cache", *heavy)
    counted("push of all", lab.root, "dvc", "push", "--run-cache")
    counted("the same again", lab.root, "dvc", "push", "--run-cache")
    for clone in clones:
        lab.run("git", "clone", "--quiet", str(lab.root), str(clone))
    (clones[1] / "dvc.lock").unlink()
    counted("pull", clones[0], "dvc", "pull")
    said = counted("restore", clones[1], "dvc", "repro", "--pull")
    if f"fit@{FIRST}' is cached" not in said:
        raise RuntimeError(f"the run-cache restored nothing:\n{said[-2000:]}")
    return rows


if __name__ == "__main__":
    main()
