"""A service to watch over: tells its version, and whether it is well. `web.py PORT VERSION ok|sick|SECONDS`.

With a number it is unwell for so many seconds after its start, and well from then on.
"""

import http.server
import sys
import time

port, version, health = int(sys.argv[1]), sys.argv[2], sys.argv[3]
began = time.monotonic()


class Answer(http.server.BaseHTTPRequestHandler):
    """`/version` and `/health`."""

    def do_GET(self) -> None:
        """Answer one of them."""
        warm = health == "ok" or (health.isdigit() and time.monotonic() - began >= int(health))
        body = version if self.path == "/version" else "ok" if warm else "sick"
        self.send_response(200 if self.path == "/version" or warm else 503)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


http.server.HTTPServer(("127.0.0.1", port), Answer).serve_forever()
