"""Stands in for an SGLang server in tests of the replay: starts in 0.1 s and streams tokens.

It accepts the launcher's command line and ignores unknown flags. Flags with --fake- choose a
fault.
"""

import argparse
import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument(
        "--fake-die-after", type=int, help="exit with code 3 after this number of generations"
    )
    parser.add_argument("--fake-gap-s", type=float, default=0.0, help="seconds between two tokens")
    args, _ = parser.parse_known_args()
    streamed = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal streamed
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/freeze_gc":
                self._whole(b"Garbage collection frozen.")
                return
            count = body["sampling_params"]["max_new_tokens"]
            if not body.get("stream"):
                self._whole(json.dumps(event(count, count)).encode())
                return
            streamed += 1
            if args.fake_die_after is not None and streamed > args.fake_die_after:
                os._exit(3)
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for i in range(1, count + 1):
                time.sleep(args.fake_gap_s)
                self._chunk(f"data: {json.dumps(event(i, count))}\n\n")
            self._chunk("data: [DONE]\n\n")
            self._chunk("")

        def _whole(self, answer: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def _chunk(self, text: str) -> None:
            self.wfile.write(f"{len(text):x}\r\n{text}\r\n".encode())

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer((args.host, args.port), Handler).serve_forever()


def event(i: int, count: int) -> dict[str, object]:
    """Return the event of token `i` of `count`."""
    finish = {"type": "length", "length": count} if i == count else None
    return {"meta_info": {"completion_tokens": i, "finish_reason": finish, "cached_tokens": 0}}


if __name__ == "__main__":
    main()
