"""The router as users start it, a process, in front of servers that answer at once.

The servers only say what a client sees; how servers of a pair depend on each other is the business
of other fakes.
"""

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kairos.cluster.ports import PortReservation

MODEL = "tiny"
_USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


class Engine(ThreadingHTTPServer):
    """A server of either role; remembers the headers and bodies it got.

    Args:
        pace_s: pause before each event of a stream and before a whole answer, seconds.
        events: of a stream; the last one holds how it ended.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, pace_s: float = 0.0, events: int = 2) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pace_s = pace_s
        self.events = events
        self.seen: list[tuple[str, dict[str, str], Any]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def of(self, path: str) -> list[tuple[dict[str, str], Any]]:
        """Headers (names in lower case) and bodies of the requests to a path."""
        return [(headers, body) for where, headers, body in self.seen if where == path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Engine

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self._note(path, None)
        answers = {
            "/health": {},
            "/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model"}]},
            "/model_info": {"model_path": MODEL, "is_generation": True},
            "/server_info": {"internal_states": [{}], "random_seed": 1, "startup_time": 1.0},
            "/v1/loads": {"loads": []},
        }
        self._answer(200 if path in answers else 404, answers.get(path, {}))

    def do_POST(self) -> None:
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        document = json.loads(body) if body else None
        self._note(path, document)
        if path in ("/flush_cache", "/abort_request"):
            self._answer(200, {})
            return
        shapes = {
            "/generate": _generate,
            "/v1/completions": _completion,
            "/v1/chat/completions": _chat,
            "/v1/responses": _response,
        }
        if path not in shapes:
            self._answer(404, {})
        elif document.get("stream"):
            parts = [*[0] * (self.server.events - 1), 1]
            self._stream([shapes[path](document, part) for part in parts])
        else:
            time.sleep(self.server.pace_s)
            self._answer(200, shapes[path](document, None))

    def _note(self, path: str, body: Any) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append((path, headers, body))

    def _answer(self, status: int, document: object) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, events: list[object]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for text in [*(json.dumps(event) for event in events), "[DONE]"]:
            time.sleep(self.server.pace_s)
            line = f"data: {text}\n\n"
            self.wfile.write(f"{len(line):x}\r\n{line}\r\n".encode())
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        pass


def _generate(body: dict, part: int | None) -> object:
    done = part != 0
    meta = {
        "id": "x", "prompt_tokens": 3, "completion_tokens": 2 if done else 1, "cached_tokens": 0,
        "finish_reason": {"type": "length", "length": 2} if done else None,
    }  # fmt: skip
    one = {"text": " a b" if done else " a", "output_ids": [5, 6][: 1 + done], "meta_info": meta}
    given = body.get("text") or body.get("input_ids")
    batch = isinstance(given, list) and (body.get("text") or isinstance(given[0], list))
    return [{**one, "index": i} for i in range(len(given))] if batch and part is None else one


def _completion(body: dict, part: int | None) -> object:
    choice = {"index": 0, "text": " a", "finish_reason": None if part == 0 else "length"}
    whole = {} if part == 0 else {"usage": _USAGE}
    return {"id": "x", "object": "text_completion", "created": 1, "model": MODEL,
            "choices": [choice], **whole}  # fmt: skip


def _chat(body: dict, part: int | None) -> object:
    finish = None if part == 0 else "stop"
    if part is None:
        message = {"role": "assistant", "content": "a b"}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        kind = "chat.completion"
    else:
        choice = {"index": 0, "delta": {"content": " a"}, "finish_reason": finish}
        kind = "chat.completion.chunk"
    whole = {} if part == 0 else {"usage": _USAGE}
    return {"id": "x", "object": kind, "created": 1, "model": MODEL,
            "choices": [choice], **whole}  # fmt: skip


def _response(body: dict, part: int | None) -> object:
    if part is not None:
        return {"type": ("response.created", "response.completed")[part]}
    content = [{"type": "output_text", "text": "a b", "annotations": []}]
    message = {"id": "m", "type": "message", "role": "assistant", "status": "completed",
               "content": content}  # fmt: skip
    return {"id": "x", "object": "response", "created_at": 1, "model": MODEL,
            "status": "completed", "output": [message]}  # fmt: skip


class RouterProcess:
    """A router that is ready."""

    def __init__(self, argv: Sequence[str], port: int, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kairos.router", "--port", str(port), *argv],
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def wait_ready(self, url: str | None = None, limit_s: float = 60.0) -> None:
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            if self.get("/ready", url=url)[0] == 200:
                return
            time.sleep(0.05)
        raise AssertionError(f"the router is not ready:\n{self.log.read_text()}")

    def get(self, path: str, key: str | None = None, url: str | None = None) -> tuple[int, bytes]:
        return self.ask("GET", path, None, key, url=url)

    def ask(
        self,
        method: str,
        path: str,
        body: object,
        key: str | None = None,
        headers: dict[str, str] | None = None,
        url: str | None = None,
    ) -> tuple[int, bytes]:
        """Status and body; (0, b"") if nobody answers."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request((url or self.url) + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        if key is not None:
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except OSError:
            return 0, b""

    def lines(self) -> list[dict[str, Any]]:
        """The access log so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line[:1] == "{"]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def routed(
    folder: Path, *argv: str, pairs: int = 1
) -> Iterator[tuple[RouterProcess, list[Engine], list[Engine]]]:
    """A router in front of so many prefill and as many decode servers."""
    with ExitStack() as stack:
        engines = [stack.enter_context(Engine()) for _ in range(2 * pairs)]
        for engine in engines:
            stack.callback(engine.shutdown)
        prefill, decode = engines[:pairs], engines[pairs:]
        flags = [word for e in prefill for word in ("--prefill", e.url, "8998")]
        flags += [word for e in decode for word in ("--decode", e.url)]
        port = stack.enter_context(_free_port())
        router = RouterProcess([*flags, *argv], port, folder / "router.log")
        stack.callback(router.process.wait)
        stack.callback(router.process.kill)
        router.wait_ready()
        yield router, prefill, decode


@contextmanager
def _free_port() -> Iterator[int]:
    """A free port."""
    held = PortReservation()
    try:
        yield held.take()
    finally:
        held.close()
