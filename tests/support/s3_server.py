"""An S3 on loopback: moto, and a switch that breaks downloads as a bad network does.

    python -m tests.support.s3_server SWITCH

prints its port. While the file SWITCH exists, each download of a file's object stops in its middle, though its header
promises all of it; lists of folders come whole. It is a process of its own, since moto takes botocore apart.
"""

import sys
from pathlib import Path

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


class Breaking:
    """A WSGI application whose downloads break off while the switch is on."""

    def __init__(self, app, switch: Path) -> None:
        self.app, self.switch = app, switch

    def __call__(self, environ, start_response):
        body = b"".join(self.app(environ, start_response))
        is_object = "/files/md5/" in environ["PATH_INFO"] and not environ["PATH_INFO"].endswith(".dir")
        if environ["REQUEST_METHOD"] != "GET" or not is_object or not self.switch.exists():
            return [body]
        # The client asks for the rest again, by a range: it never comes.
        return [b"" if "HTTP_RANGE" in environ else body[: len(body) // 2]]


if __name__ == "__main__":
    app = Breaking(DomainDispatcherApplication(create_backend_app), Path(sys.argv[1]))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    print(server.port, flush=True)
    server.serve_forever()
