"""A stage without a network opens no connection, and has no credentials."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.canaries import SECRETS, WAYS, Listener

REPOSITORY = Path(__file__).parents[2]

# Ways to reach port `port`: by Python's own modules, and by libraries that a stage loads.
TRIES = """
import json, os, socket, subprocess, sys, urllib.request
port = int(sys.argv[1])

def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(b"x", ("127.0.0.1", port))

def child():
    names = subprocess.run(["env"], capture_output=True, text=True).stdout
    assert not any(name + "=" in names for name in json.loads(sys.argv[2])), "the child knows a credential"
    raise RuntimeError("knows none")

def unix():
    a, b = socket.socketpair()
    a.sendall(b"x")
    assert b.recv(1) == b"x"
    a.close(), b.close()

tries = {
    "connect": lambda: socket.create_connection(("127.0.0.1", port)).close(),
    "raw": lambda: socket.socket().connect(("127.0.0.1", port)),
    "name": lambda: socket.getaddrinfo("localhost", port),
    "old name": lambda: socket.gethostbyname("localhost"),
    "udp": udp,
    "urllib": lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}").close(),
    "child": child,
    "unix": unix,
}
for module, call in {"httpx2": f"get('http://127.0.0.1:{port}')", "requests": f"get('http://127.0.0.1:{port}')"}.items():
    tries[module] = lambda module=module, call=call: eval("__import__(module)." + call)
found = {}
for name, attempt in tries.items():
    try:
        attempt()
        found[name] = "done"
    except BaseException as error:
        found[name] = type(error).__name__ + ": " + str(error)
"""
TELL = "print(json.dumps({'found': found, 'environment': dict(os.environ)}))"


def run(*words: str, port: int, cwd: Path, **environment: str) -> dict[str, dict[str, str]]:
    command = [sys.executable, "-W", "ignore", *words, str(port), json.dumps([*SECRETS, "SSH_AUTH_SOCK"])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ | environment, check=True)
    answer: dict[str, dict[str, str]] = json.loads(done.stdout)
    return answer


def test_no_connection_is_opened_and_no_credential_stays(record_property):
    """Python's ways to connect are denied, local sockets are not; a child process has no credentials either."""
    code = f"from lensmith.process import offline; offline.enter()\n{TRIES}\n{TELL}"
    with Listener() as canary:
        environment = canary.environment() | {"SSH_AUTH_SOCK": "/tmp/agent", "TOKENIZERS_PARALLELISM": "false"}
        answer = run("-c", code, port=canary.port, cwd=REPOSITORY, **environment)
        assert canary.connections == 0

    found = answer["found"]
    assert found.pop("unix") == "done"
    assert found.pop("child") == "RuntimeError: knows none"
    assert all("runs without a network" in said for said in found.values()), found
    assert not {*SECRETS, *WAYS, "SSH_AUTH_SOCK"} & set(answer["environment"])
    assert answer["environment"]["TOKENIZERS_PARALLELISM"] == "false", "TOKENIZERS is a longer word than TOKEN"
    record_property("ways out of a process that an offline stage denies", f"{len(found)} of {len(found)}")


LIBRARIES = ("numpy", "pydantic", "torch", "huggingface_hub", "transformers", "datasets")


@pytest.mark.parametrize("stage", sorted(path.stem for path in (REPOSITORY / "stages").glob("[a-z]*.py")))
def test_every_stage_but_two_is_offline(tmp_path, stage):
    """Each stage runs as DVC runs it, with a main that connects. Only prefetch and publish have a network.

    No library is imported before the network is denied: libraries of the Hub read their settings on import.
    """
    (tmp_path / "stages").mkdir()
    (tmp_path / "src").symlink_to(REPOSITORY / "src")
    (tmp_path / "stages/__init__.py").write_text((REPOSITORY / "stages/__init__.py").read_text())
    script = (REPOSITORY / f"stages/{stage}.py").read_text()
    main, end = script.index("def main() -> None:"), script.index('if __name__ == "__main__":')
    probe = (
        "def main():\n    import json, os, socket, sys\n"
        f"    found = {{'imported': [name for name in {LIBRARIES} if name in sys.modules]}}\n"
        "    try:\n        socket.create_connection(('127.0.0.1', int(sys.argv[1]))).close()\n"
        "        found['connect'] = 'done'\n"
        f"    except Exception as error:\n        found['connect'] = str(error)\n    {TELL}\n"
    )
    (tmp_path / f"stages/{stage}.py").write_text(script[:main] + probe + script[end:])
    with Listener() as canary:
        answer = run("-m", f"stages.{stage}", port=canary.port, cwd=tmp_path, **SECRETS)

    assert answer["found"]["imported"] == []
    if stage in {"prefetch", "publish"}:
        assert answer["found"]["connect"] == "done" and set(SECRETS) <= set(answer["environment"])
    else:
        assert "runs without a network" in answer["found"]["connect"]
        assert not set(SECRETS) & set(answer["environment"])
        assert answer["environment"]["HF_HUB_OFFLINE"] == "1"


def test_a_library_imported_before_the_network_is_denied_is_refused():
    """It has read its settings already and could connect from compiled code."""
    code = "import huggingface_hub; from lensmith.process import offline; offline.enter()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert "huggingface_hub: imported before the network was denied" in done.stderr
