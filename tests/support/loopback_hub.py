"""A small Hub on the loopback interface, for the real clients: nothing of ours is replaced in these tests.

LoopbackHub serves models and datasets: commits, branches, tags, LFS records, ranges, gates, and faults on demand;
loopback_writes.py holds what it lets be written.
Client is a child process that uses it, since huggingface_hub reads its environment when it is imported.
"""

import contextlib
import datetime as dt
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, this file's own folder is there instead

from tests.support.loopback_writes import Writes, git_id, is_lfs  # noqa: E402

Files = dict[str, bytes]

# In place of a status: the connection breaks in the middle of the body; or half of it passes for the whole.
CUT, SHORT = 0, 1


@dataclass
class Repo:
    """One repository: commits are whole trees, refs are names of commits."""

    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False


@dataclass
class Fault:
    """`times` requests whose "METHOD path" matches `pattern`, after the first `skip`, get `status`.

    They are not obeyed or, where `after` is true, are: the client is only not told.
    """

    pattern: str
    status: int
    times: int
    after: bool = False
    skip: int = 0


class LoopbackHub:
    """Use as a context manager; `url` is its HF_ENDPOINT."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.faults: list[Fault] = []
        self.flipped: set[str] = set()  # paths whose downloads have one bit flipped
        self.requests: list[str] = []  # "METHOD path"
        self.large: dict[str, bytes] = {}  # uploads that wait for their commit, by sha256
        self.lock = threading.RLock()
        hub = self

        class Handler(_Handler):
            state = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def commit(self, kind: str, name: str, files: Files, branch: str = "main") -> str:
        """A new commit that holds exactly `files`; the branch moves to it."""
        repo = self.repos.setdefault((kind, name), Repo())
        content = repr((repo.refs.get(branch), sorted(files.items()))).encode()
        sha = hashlib.sha1(content).hexdigest()
        repo.commits[sha] = dict(files)
        repo.refs[branch] = sha
        return sha

    def tag(self, kind: str, name: str, tag: str, sha: str) -> None:
        self.repos[kind, name].refs[tag] = sha

    def downloads(self) -> list[str]:
        """Paths in repositories whose bytes were asked for since the last call."""
        found = [match[1] for line in self.requests if (match := re.match(r"GET .*/resolve/[^/]+/(.*)", line))]
        self.requests.clear()
        return found


def entry(path: str, content: bytes) -> dict[str, Any]:
    record: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_id(content)}
    if is_lfs(path):
        record["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return record


class _Handler(Writes):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer with a body waits 40 ms for the client's acknowledgement
    state: LoopbackHub

    def log_message(self, *_: object) -> None:
        """Keep quiet: the tests read `requests`."""

    def _route(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        split = urlsplit(self.path)
        path = unquote(split.path)
        self.query = parse_qs(split.query)
        line = f"{self.command} {path}"
        self.state.requests.append(line)
        self.fault: int | None = None
        self.part: int | None = None
        for fault in self.state.faults:
            if fault.times > 0 and re.search(fault.pattern, line):
                fault.skip -= 1
                if fault.skip >= 0:
                    continue
                fault.times -= 1
                if fault.status in (CUT, SHORT):
                    self.part = fault.status
                    continue
                if not fault.after:
                    return self._send(fault.status, b"fault on demand")
                self.fault = fault.status
        if self.write(path):
            return None
        if match := re.fullmatch(
            r"/api/(models|datasets|spaces)/([^/]+/[^/]+)"
            r"(?:/(revision|tree|paths-info|auth-check|refs)/?([^/]*)/?(.*))?",
            path,
        ):
            return self._api(*match.groups())
        if match := re.fullmatch(r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve((match[1] or "models").rstrip("/"), match[2], match[3], match[4])
        return self._error(404, "EntryNotFound")

    def _find(self, kind: str, name: str, revision: str | None) -> tuple[Repo, str] | None:
        repo = self.state.repos.get((kind, name))
        if repo is None:
            self._error(401 if "Authorization" not in self.headers else 404, "RepoNotFound")
            return None
        sha = repo.refs.get(revision or "main", revision or "")
        if sha not in repo.commits:
            self._error(404, "RevisionNotFound")
            return None
        return repo, sha

    def _api(self, kind: str, name: str, what: str | None, revision: str | None, below: str | None) -> None:
        if (found := self._find(kind, name, revision or None)) is None:
            return
        repo, sha = found
        files = repo.commits[sha]
        if what == "auth-check" and repo.gated and "Authorization" not in self.headers:
            self._error(401, "GatedRepo")
        elif what == "refs":
            self._json(self.refs(repo.refs))
        elif what == "tree":
            self._json(self._tree(files, below or ""))
        elif what == "paths-info":
            form = json.loads(self.body) if self.body.startswith(b"{") else parse_qs(self.body.decode())
            paths = [unquote(p) for p in form["paths"]]
            folders = [p for p in paths if any(f.startswith(p + "/") for f in files)]
            self._json([entry(p, files[p]) for p in paths if p in files] + [_folder(p) for p in folders])
        else:
            siblings = [{"rfilename": path} for path in files]
            self._json(
                {"id": name, "sha": sha, "siblings": siblings, "private": False, "gated": repo.gated, "tags": []}
            )

    def _tree(self, files: Files, below: str) -> list[dict[str, Any]]:
        inside = {path: content for path, content in files.items() if path.startswith(below and below + "/")}
        if self.query.get("recursive", ["false"])[0].lower() in ("true", "1"):
            return [entry(path, content) for path, content in inside.items()]
        start = len(below) + 1 if below else 0
        folders = {path[: path.index("/", start)] for path in inside if "/" in path[start:]}
        direct = [entry(path, content) for path, content in inside.items() if "/" not in path[start:]]
        return direct + [_folder(path) for path in sorted(folders)]

    def _resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        if (found := self._find(kind, name, revision)) is None:
            return None
        repo, sha = found
        if repo.gated and "Authorization" not in self.headers:
            return self._error(401, "GatedRepo", {"X-Repo-Commit": sha})
        content = repo.commits[sha].get(path)
        if content is None:
            return self._error(404, "EntryNotFound", {"X-Repo-Commit": sha})
        record = entry(path, content)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{record["oid"]}"', "Accept-Ranges": "bytes"}
        if "lfs" in record:
            headers |= {"X-Linked-Etag": f'"{record["lfs"]["oid"]}"', "X-Linked-Size": str(len(content))}
        if path in self.state.flipped:
            content = bytes([content[0] ^ 1]) + content[1:]
        return self._ranged(content, headers)

    def _ranged(self, content: bytes, headers: dict[str, str]) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            return self._send(200, content, headers)
        first, last = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self._send(206, content[first : last + 1], headers)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        if self.fault is not None:
            status, body = self.fault, b"fault on demand"
        whole = len(body)
        if self.part is not None:
            body = body[: whole // 2]
            whole = len(body) if self.part == SHORT else whole
            self.close_connection = True
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(whole))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": git_id(path.encode()), "size": 0}


class Client:
    """A child process with its own cache that calls our functions; `call` gives their result as JSON, or raises."""

    def __init__(self, url: str, home: Path, *, cwd: Path = ROOT, **environment: str) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        ours = {
            "HF_ENDPOINT": url,
            "HF_HOME": str(home),
            "LENSMITH_HOME": str(home / "lensmith"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean | ours | environment,
            cwd=cwd,
        )

    def call(self, function: str, **arguments: Any) -> Any:
        """One of CALLS. A LensmithError of the child is raised here as the same class, with its message."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([function, arguments]) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline() or '{"error": ["RuntimeError", "the child has died"]}')
        if "error" in answer:
            from lensmith.process import errors

            name, message = answer["error"]
            raise getattr(errors, name, RuntimeError)(message)
        return answer["result"]

    def close(self) -> None:
        with self.process:
            self.process.kill()


def settings_of(source: dict[str, Any], corpus: dict[str, Any]) -> Any:
    """Settings with these two sections; `prefetch` reads little of the others."""
    from lensmith.settings import sections as params
    from tests.support.settings import shipped

    sections = {
        "source": params.SourceParams.model_validate(source),
        "corpus": params.CorpusParams.model_validate(corpus),
    }
    return shipped().model_copy(update=sections)


def _calls() -> dict[str, Any]:
    """By name. Calls that need torch or plotly import them themselves: most clients only ask the Hub."""
    from lensmith.hub import datasets, pins, published, releases
    from lensmith.hub import models as hub
    from lensmith.hub import push as hub_release
    from lensmith.lab import add
    from lensmith.release import package, publish, verify
    from lensmith.settings import sections as params

    def dataset(corpus: dict[str, Any]) -> Any:
        return datasets.pin_dataset(params.CorpusParams.model_validate(corpus)).model_dump(mode="json")

    def build(source: dict[str, Any], corpus: dict[str, Any], out: str) -> None:
        from lensmith.source import prefetch

        prefetch.build(settings_of(source, corpus), Path(out))

    def parcel(folder: str, model_id: str, tag: str | None = None) -> Any:
        entry = json.loads((Path(folder) / "INDEX.json").read_bytes())[model_id]
        return hub_release.Parcel(model_id, Path(folder), entry, package.dataset_card, tag)

    def push(repo: str, day: str, **what: Any) -> Any:
        return asdict(hub_release.push(parcel(**what), repo, dt.date.fromisoformat(day)))

    def preview(repo: str, day: str, **what: Any) -> Any:
        return list(hub_release.preview(parcel(**what), repo, dt.date.fromisoformat(day)))

    def download(repo: str, model: str | None = None, revision: str | None = None, to: str | None = None) -> str:
        return str(releases.download(repo, model, revision, Path(to) if to else None))

    def stage(name: str, settings: dict[str, Any], paths: dict[str, str]) -> None:
        chosen = params.ModelParams.model_validate(settings)
        at = {place: Path(path) for place, path in paths.items()}
        if name == "fit":
            from lensmith.lens import stage as fit

            fit.run(chosen, at["code"], at["corpus"], at["lens"])
        else:
            from lensmith.report import page

            drawn = {name: at[name].parent for name in page.ReportFolders.__annotations__ if name != "resolved"}
            html = page.page_of(at["settings"], page.ReportFolders(resolved=at["settings"].parent, **drawn))
            publish.run(chosen, at["corpus"], at["lens"], at["judgement"], at["release"], page=html)

    def logits(place: str, model: str, base: str, revision: str | None = None) -> Any:
        """What a published or local lens reads after each block at the last of a few tokens."""
        import torch
        from transformers import AutoModelForCausalLM

        import lensmith
        from lensmith.lens.lens import Lens
        from lensmith.source.backbone import Backbone

        backbone = Backbone.from_model(AutoModelForCausalLM.from_pretrained(base))
        local = (Path(place) / "weights.safetensors").exists()
        lens = Lens.load(Path(place)) if local else lensmith.load(place, model=model, revision=revision)
        reader = lensmith.bind(lens, backbone)
        resid = backbone.capture(torch.arange(2, 9)[None], torch.tensor([[6]]))[0]
        layers = range(1, backbone.n_layers + 1)
        return [reader.read(resid[0, layer], layer=layer, logits=True).logits.tolist() for layer in layers]

    return {
        "stage": stage,
        "logits": logits,
        "push": push,
        "preview": preview,
        "download": download,
        "newest": releases.newest,
        "licences": lambda repo, commit: {n: t.decode() for n, t in hub.licence_texts(repo, commit).items()},
        "propose": lambda repo, key=None: asdict(add.of_repo(repo, key)),
        "verify": verify.run,
        "pin_model": lambda **source: hub.pin_model(params.SourceParams.model_validate(source)).model_dump(),
        "fetch_model": lambda pin: str(hub.fetch_model(pins.ModelPin.model_validate(pin))),
        "fetch_tokenizer": lambda pin: str(hub.fetch_tokenizer(pins.ModelPin.model_validate(pin))),
        "pin_lens": lambda **lens: published.pin_lens(params.ImportedParams.model_validate(lens)).model_dump(),
        "fetch_lens": lambda pin: str(published.fetch_lens(pins.LensPin.model_validate(pin))),
        "pin_dataset": dataset,
        "build": build,
    }


def _serve() -> None:
    from lensmith.process.errors import LensmithError

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not be taken for an answer
    calls = _calls()
    for line in sys.stdin:
        function, arguments = json.loads(line)
        try:
            answer = {"result": calls[function](**arguments)}
        except LensmithError as error:
            answer = {"error": [type(error).__name__, str(error)]}
        except Exception as error:  # noqa: BLE001 (a bug, told to the test)
            answer = {"error": [f"bug: {type(error).__name__}", repr(error)]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
