"""A single fake SGLang server for tests of calibration, in threads of this process."""

import copy
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

INFO: dict[str, Any] = {
    "model_path": "/models/fake",
    "served_model_name": "fake",
    "disaggregation_mode": "null",
    "chunked_prefill_size": 64,
    "max_total_num_tokens": 20_000,
    "max_req_input_len": 2_000,
    "is_embedding": False,
    "version": "0.5.23",
    "launch_command": "python -m sglang.launch_server --api-key secret --chunked-prefill-size 64",
    "internal_states": [{"effective_max_running_requests_per_dp": 8}],
}


class FakeServer:
    """State of the server, which tests change.

    Attributes:
        info: answer to /server_info; None answers 404.
        mode: "stream"; "whole" answers without a stream, "burst" with all tokens at once, "refuse"
            with status 400.
        stop_after: number of generations after which the next ones are refused; None for never.
        gap_s: seconds between two tokens.
        bodies: bodies of the generations.
        url: base URL.
    """

    def __init__(self) -> None:
        self.info: dict[str, Any] | None = copy.deepcopy(INFO)
        self.mode = "stream"
        self.stop_after: int | None = None
        self.gap_s = 0.0005
        self.bodies: list[dict[str, Any]] = []
        self.url = ""


def event(i: int, count: int) -> str:
    """Return the event of token `i` of `count`."""
    finish = {"type": "length", "length": count} if i == count else None
    meta = {"completion_tokens": i, "finish_reason": finish, "cached_tokens": 0}
    return f"data: {json.dumps({'meta_info': meta})}\n\n"


@contextmanager
def serving() -> Iterator[FakeServer]:
    """Run a server on a free port of the loopback interface."""
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/server_info" or fake.info is None:
                self.send_error(404)
                return
            self._answer(200, json.dumps(fake.info).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.bodies.append(body)
            stopped = fake.stop_after is not None and len(fake.bodies) > fake.stop_after
            if fake.mode == "refuse" or stopped:
                self._answer(400, b'{"error": {"message": "token id out of range"}}')
                return
            count = body["sampling_params"]["max_new_tokens"]
            if fake.mode == "whole":
                self._answer(200, json.dumps({"text": "", "meta_info": {}}).encode())
                return
            events = [event(i, count) for i in range(1, count + 1)]
            if fake.mode == "burst":
                self._answer(200, "".join(events).encode())
                return
            self.send_response(200)
            self.end_headers()
            try:
                for one in events:
                    time.sleep(fake.gap_s)
                    self.wfile.write(one.encode())
                self.wfile.write(b"data: [DONE]\n\n")
            except OSError:
                pass  # the client has disconnected

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
