"""The part of the loopback Hub that is written to: repositories, large files, commits, tags.

It refuses what the real one refuses: wrong tokens (401), tokens that may only read (403), bodies that are not what
their hash says (400), commits onto a head that has moved (412), tags that exist (409).
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.loopback_hub import LoopbackHub

WRITER, READER = "hf_writer", "hf_reader"


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".parquet", ".bin", ".pt", "tokenizer.json"))


class Writes(BaseHTTPRequestHandler):
    """Routes that change something. `self.body` is the request's."""

    state: "LoopbackHub"
    body: bytes
    _json: Callable[[object], None]
    _error: Callable[..., None]
    _send: Callable[..., None]

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def do_PUT(self) -> None:
        self._route()

    def write(self, path: str) -> bool:
        """Answer a request that writes; False where this is none."""
        routes: tuple[tuple[str, Callable[..., None]], ...] = (
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", self._validate),
            (r"/api/(models|datasets)/([^/]+/[^/]+)/preupload/([^/]+)", self._preupload),
            (r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._lfs_batch),
            (r"/lfs/([0-9a-f]{64})", self._lfs_put),
            (r"/api/(models|datasets)/([^/]+/[^/]+)/commit/([^/]+)", self._commit),
            (r"/api/(models|datasets)/([^/]+/[^/]+)/tag/([^/]+)", self._tag),
        )
        for pattern, answer in routes:
            if self.command in ("POST", "PUT") and (match := re.fullmatch(pattern, path)):
                if answer == self._lfs_put or self._may_write():  # a storage address carries its own signature
                    answer(*match.groups())
                return True
        return False

    def _may_write(self) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token == WRITER:
            return True
        self._error(403 if token == READER else 401, "Forbidden" if token == READER else "InvalidToken")
        return False

    def _create(self) -> None:
        wanted = json.loads(self.body)
        kind, name = f"{wanted.get('type', 'model')}s", f"{wanted['organization']}/{wanted['name']}"
        address = {"url": f"{self.state.url}/{kind}/{name}"}
        with self.state.lock:
            if (kind, name) in self.state.repos:
                return self._send(409, json.dumps(address).encode())
            self.state.commit(kind, name, {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self._json(address)

    def _validate(self) -> None:
        front = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        errors = [] if front and "license:" in front[1] else [{"message": '"license" is missing'}]
        self._send(400 if errors else 200, json.dumps({"errors": errors, "warnings": []}).encode())

    def _preupload(self, kind: str, name: str, revision: str) -> None:
        if (found := self._find(kind, name, revision)) is None:
            return
        repo, sha = found
        answer = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if is_lfs(file["path"]) else "regular"
            content = repo.commits[sha].get(file["path"])
            oid = None if content is None else hashlib.sha256(content).hexdigest() if mode == "lfs" else git_id(content)
            answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answer})

    def _lfs_batch(self, _kind: str | None, _name: str) -> None:
        answer = []
        for wanted in json.loads(self.body)["objects"]:
            record: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.state.large:
                record["actions"] = {"upload": {"href": f"{self.state.url}/lfs/{wanted['oid']}"}}
            answer.append(record)
        self._json({"transfer": "basic", "objects": answer})

    def _lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._error(400, "BadDigest")
        self.state.large[oid] = self.body
        return self._send(200, b"")

    def _commit(self, kind: str, name: str, revision: str) -> None:
        lines = [json.loads(line) for line in self.body.splitlines()]
        header, changes = lines[0]["value"], lines[1:]
        with self.state.lock:
            if (found := self._find(kind, name, revision)) is None:
                return None
            repo, sha = found
            if header.get("parentCommit") not in (None, sha):
                return self._error(412, "PreconditionFailed")
            files = dict(repo.commits[sha])
            for change in changes:
                if not self._apply(files, change["key"], change["value"]):
                    return self._error(400, "BadCommit")
            oid = self.state.commit(kind, name, files, revision)
        return self._json({"commitUrl": f"{self.state.url}/{kind}/{name}/commit/{oid}", "commitOid": oid})

    def _apply(self, files: dict[str, bytes], key: str, value: dict[str, Any]) -> bool:
        path = value["path"]
        if key == "file":
            files[path] = base64.b64decode(value["content"])
        elif key == "lfsFile" and value["oid"] in self.state.large:
            files[path] = self.state.large[value["oid"]]
        elif key == "deletedFile" and path in files:
            del files[path]
        else:
            return False
        return True

    def _tag(self, kind: str, name: str, revision: str) -> None:
        if (found := self._find(kind, name, revision)) is None:
            return None
        repo, sha = found
        tag = json.loads(self.body)["tag"]
        with self.state.lock:
            if tag in repo.refs:
                return self._error(409, "TagExists")
            repo.refs[tag] = sha
        return self._send(200, b"{}")

    def refs(self, refs: dict[str, str]) -> dict[str, Any]:
        """The answer to /refs: `main` is the branch, all else are tags."""

        def named(kind: str, names: list[str]) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": refs[name]} for name in names]

        tags = named("tags", [name for name in refs if name != "main"])
        return {"branches": named("heads", ["main"]), "converts": [], "tags": tags}

    def _find(self, kind: str, name: str, revision: str | None) -> tuple[Any, str] | None:
        raise NotImplementedError

    def _route(self) -> None:
        raise NotImplementedError
