"""A teacher behind HTTP: its card, and labels for batches, as bytes. Knows no student and no file.

The standard library's server is all that it takes: one request a connection at a time, megabytes each, and the teacher
in between computes one at a time anyway.
"""

import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from m6rec.distillation.teacher import Teacher

CARD_PATH, LABEL_PATH = "/card", "/label"
# Larger than any batch; what is larger is no batch of ours, and would fill the memory.
MOST_BYTES = 1 << 28


class TeacherServer(ThreadingHTTPServer):
    """Serves one teacher until ``shutdown``; several students may ask it, and each waits its turn.

    Args:
        teacher: who answers.
        host: interface to listen on.
        port: 0 = any that is free (``server_address`` tells which).
    """

    daemon_threads = True

    def __init__(self, teacher: Teacher, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((host, port), _Handler)
        self._teacher, self._turn = teacher, threading.Lock()

    @property
    def url(self) -> str:
        """Where it is served."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"

    def card(self) -> bytes:
        """Return the teacher's card."""
        return self._teacher.card.dump().encode()

    def label(self, request: bytes) -> bytes:
        """Return the answer to one batch."""
        with self._turn:
            return self._teacher.answer(request)


class _Handler(BaseHTTPRequestHandler):
    server: TeacherServer
    protocol_version = "HTTP/1.1"  # keeps the connection from batch to batch
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.path != CARD_PATH:
            return self._say(HTTPStatus.NOT_FOUND, f"there are {CARD_PATH} and {LABEL_PATH}".encode())
        return self._say(HTTPStatus.OK, self.server.card())

    def do_POST(self) -> None:
        size = self.headers.get("Content-Length", "")
        if not size.isdigit() or int(size) > MOST_BYTES:
            self.close_connection = True
            return self._say(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b"a batch, with its length")
        body = self.rfile.read(int(size))
        if self.path != LABEL_PATH:
            return self._say(HTTPStatus.NOT_FOUND, f"there are {CARD_PATH} and {LABEL_PATH}".encode())
        return self._say(HTTPStatus.OK, self.server.label(body))

    def _say(self, status: HTTPStatus, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words: object) -> None:
        """Say nothing: a line a batch would be the log."""
