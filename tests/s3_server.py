"""An S3 on loopback: moto, and a switch that breaks downloads as a bad network does.

    python tests/s3_server.py SWITCH

prints its port. While the file SWITCH exists, a download of more than SMALL bytes stops in its middle, but its header
promises all of it. It is a process of its own, since moto takes botocore apart.
"""

import sys
from pathlib import Path

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

SMALL = 10_000


class Breaking:
    """A WSGI application whose downloads break off while the switch is on."""

    def __init__(self, app, switch: Path) -> None:
        self.app, self.switch = app, switch

    def __call__(self, environ, start_response):
        body = b"".join(self.app(environ, start_response))
        breaks = environ["REQUEST_METHOD"] == "GET" and len(body) > SMALL and self.switch.exists()
        return [body[: len(body) // 2] if breaks else body]


if __name__ == "__main__":
    app = Breaking(DomainDispatcherApplication(create_backend_app), Path(sys.argv[1]))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    print(server.port, flush=True)
    server.serve_forever()
