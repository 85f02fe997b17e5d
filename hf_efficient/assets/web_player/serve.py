"""Serve the folder that this file lies in: `python serve.py`, then open the address that it prints.

It sends the two headers by which WebAssembly gets threads from the first visit on, and parts of files, by which a
browser seeks in the video. Python's standard library is all that it needs.
"""

import argparse
import re
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


class Handler(SimpleHTTPRequestHandler):
    """Python's file server, with the headers of isolation and with parts of files."""

    def end_headers(self) -> None:
        for name, value in ISOLATED.items():
            self.send_header(name, value)
        super().end_headers()

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not asked or not path.is_file():
            super().do_GET()
            return
        size, first = path.stat().st_size, int(asked[1])
        last = min(int(asked[2] or size - 1), size - 1)
        if first > last:
            self.send_error(416)
            return
        self.send_response(206)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        with open(path, "rb") as file:
            file.seek(first)
            self.copy_part(file, last - first + 1)

    def copy_part(self, file: BinaryIO, left: int) -> None:
        """Send so many bytes."""
        while left and (piece := file.read(min(left, 1 << 16))):
            self.wfile.write(piece)
            left -= len(piece)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing for every file."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000, help="0: a free one (default: 8000)")
    parser.add_argument("--host", default="127.0.0.1", help="(default: 127.0.0.1, this machine alone)")
    arguments = parser.parse_args()
    folder = str(Path(__file__).resolve().parent)
    server = ThreadingHTTPServer((arguments.host, arguments.port), partial(Handler, directory=folder))
    print(f"http://{arguments.host}:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
