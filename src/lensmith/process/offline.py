"""A process without a network and without credentials, for the stages that read other people's files.

A library that opens a connection, because a configuration or a weight file made it, fails and has no credentials to
leak. An audit hook, which nothing in the process can remove, denies what Python itself opens. Compiled code that opens
sockets of its own is out of its reach; the variables that such libraries read ask them not to.
"""

import os
import socket
import sys

from lensmith.process import credentials
from lensmith.process.errors import InputError

# These libraries read the variables when they are imported, so `enter` must come first.
LIBRARIES = {"huggingface_hub", "transformers", "datasets"}
VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
}
# Events of a name look-up, whose first argument is the name; and of a connection, whose first argument is the socket.
_NAMES = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
_SENDS = ("socket.connect", "socket.sendto", "socket.sendmsg")


def enter() -> None:
    """Deny every connection of this process from here on, and forget all credentials. There is no way back."""
    if late := sorted(LIBRARIES & sys.modules.keys()):
        raise RuntimeError(f"{', '.join(late)}: imported before the network was denied")

    def deny(event: str, args: tuple[object, ...]) -> None:
        if event in _NAMES:
            target = args[0]
        elif event in _SENDS and getattr(args[0], "family", None) != socket.AF_UNIX:
            target = args[1]
        else:
            return
        raise InputError(
            f"network: a library asked for a connection to {target!r}, but this stage runs without a network: only "
            "prefetch and publish have one. A file of the model may have made it ask. Nothing was sent."
        )

    credentials.drop()
    os.environ.update(VARIABLES)
    sys.addaudithook(deny)
