"""Secrets that a test puts in the way, to be found nowhere; and a server that counts who asks it."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

PASSWORD = "canary-Pa55-of-git"
GIT_URL = f"https://ada:{PASSWORD}@git.example/lab.git"
SECRETS = {
    "HF_TOKEN": "hf_" + "CaNaRy0123" * 3,
    "AWS_ACCESS_KEY_ID": "AKIA" + "CANARY01" * 2,
    "AWS_SECRET_ACCESS_KEY": "canary/Secret+Of+Aws/0123456789abcdefghij",
    "AWS_SESSION_TOKEN": "canary-session-0123456789",
    "GITHUB_TOKEN": "ghp_" + "c4n4ry" * 6,
    "STORE_API_KEY": "canary of no known form",
}
# Where programs look for somebody to ask. The password stands in each address.
WAYS = ("HF_ENDPOINT", "AWS_ENDPOINT_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy")


class Listener:
    """Counts connections, and answers none. Use as a context manager."""

    def __enter__(self) -> Self:
        self.connections = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()
        return self

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                self.socket.accept()[0].close()
                self.connections += 1

    def __exit__(self, *_: object) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join()

    def environment(self) -> dict[str, str]:
        """An environment in which every way out of the machine leads here, and every secret is a canary."""
        address = f"http://ada:{PASSWORD}@127.0.0.1:{self.port}"
        return SECRETS | dict.fromkeys(WAYS, address) | {"NO_PROXY": "", "no_proxy": ""}


def hits(text: str) -> list[str]:
    """Names of the secrets that stand in a text."""
    return [name for name, value in {**SECRETS, "password": PASSWORD}.items() if value in text]


def hits_below(root: Path) -> Iterator[str]:
    """The same for every file below a folder, names of files included; git's own configuration holds its address."""
    for folder, _, names in os.walk(root):
        for path in (Path(folder, name) for name in names):
            if path.is_file() and path.relative_to(root) != Path(".git/config"):
                found = hits(str(path) + "\n" + path.read_bytes().decode("latin-1"))
                yield from (f"{path.relative_to(root)}: {name}" for name in found)
