"""Stands in for an SGLang server or the router in tests of the launcher: starts in 0.1 s.

It accepts the launcher's command line, ignores unknown flags, answers POST /generate and prints
the bootstrap room of each. Flags with --fake- choose a fault.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CHILD = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if sys.argv[1] == "child":
    grandchild = subprocess.Popen([sys.executable, "-S", "-c", sys.argv[2], "leaf", ""])
else:
    os.setsid()
time.sleep(600)
"""


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--fake-children", action="store_true", help="a tree that ignores SIGTERM")
    parser.add_argument("--fake-exit", type=int, help="exit with this code before listening")
    parser.add_argument("--fake-listen-after", type=float, default=0.0)
    parser.add_argument("--fake-ignore-term", action="store_true")
    parser.add_argument("--fake-status", type=int, default=200)
    parser.add_argument("--fake-hang", action="store_true", help="never answer a generation")
    parser.add_argument("--fake-port-taken-once", type=Path, help="file that records the fault")
    args, _ = parser.parse_known_args()

    if args.fake_ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if args.fake_children:
        subprocess.Popen([sys.executable, "-S", "-c", CHILD, "child", CHILD])
    if args.fake_port_taken_once and not args.fake_port_taken_once.exists():
        args.fake_port_taken_once.touch()
        sys.exit("OSError: [Errno 98] Address already in use")
    if args.fake_exit is not None:
        for line in range(30):
            print(f"line {line} before the end")
        sys.exit(args.fake_exit)
    time.sleep(args.fake_listen_after)
    print("PYTHONDONTWRITEBYTECODE", os.environ.get("PYTHONDONTWRITEBYTECODE"))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/freeze_gc":
                print("gc frozen")
            else:
                print("room", body.get("bootstrap_room"), "port", body.get("bootstrap_port"))
            if args.fake_hang:
                threading.Event().wait()
            meta = {"completion_tokens": 2, "finish_reason": {"type": "length"}}
            answer = json.dumps({"meta_info": meta, "path": self.path}).encode()
            self.send_response(args.fake_status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer((args.host, args.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
