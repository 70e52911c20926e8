"""A process without a network and without credentials, for the stages that read other people's files.

A configuration or a weight file that makes a library ask somebody gets an error, and has nothing to tell him. What
Python itself opens is denied by an audit hook, which nothing in the process can remove; compiled code that opens
sockets of its own is out of its reach, and is asked not to by the variables that its library knows.
"""

import os
import socket
import sys

from lensmith.process import credentials
from lensmith.process.errors import InputError

# Read by huggingface_hub, transformers and datasets when they are imported: `enter` comes before that.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
}
# What asks a name server, and what sends; the first argument of the former is a name, of the latter a socket.
_NAMES = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
_SENDS = ("socket.connect", "socket.sendto", "socket.sendmsg")


def enter() -> None:
    """From here on this process reaches nobody, and knows no credentials. There is no way back."""
    credentials.drop()
    os.environ.update(OFFLINE)
    sys.addaudithook(_deny)


def _deny(event: str, args: tuple[object, ...]) -> None:
    if event in _NAMES:
        target = args[0]
    elif event in _SENDS and getattr(args[0], "family", None) != socket.AF_UNIX:
        target = args[1]
    else:
        return
    raise InputError(
        f"network: a connection to {target!r} was asked for, but this stage runs without a network: only prefetch and "
        "publish have one. A file of the model may ask for it. Nothing was sent."
    )
