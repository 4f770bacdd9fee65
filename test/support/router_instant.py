"""A server that answers at once, for measuring routers: as little work per byte as Python can do.

    python test/support/router_instant.py PORT [TOKENS] [GAP_S]

Any POST is answered: a stream of TOKENS events if the body asks for one, else one JSON document.
It knows no rooms; it measures how fast a router moves bytes, not what it does when things fail.
"""

import asyncio
import sys

import uvloop

EVENT = b'data: {"text":"x","meta_info":{"prompt_tokens":3,"completion_tokens":1,"finish_reason":null}}\n\n'  # noqa: E501
WHOLE = b'{"text":"x","meta_info":{"prompt_tokens":3,"completion_tokens":1,"finish_reason":{"type":"length"}}}'  # noqa: E501
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"
# Room for everything: it is not to be the servers' limits that are measured.
INFO = (
    b'{"model_path":"fake","internal_states":[{}],"status":"ready","loads":[],'
    b'"max_running_requests":1000000,"max_total_num_tokens":1000000000}'
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Instant(asyncio.Protocol):
    def __init__(self, tokens: int, gap_s: float) -> None:
        self._tokens = tokens
        self._gap_s = gap_s
        self._data = bytearray()
        self._needed = 0  # bytes of the next request, as far as known
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while len(self._data) >= self._needed:
            self._needed = 0
            head, found, rest = self._data.partition(b"\r\n\r\n")
            if not found:
                return
            lower = head.lower()
            at = lower.find(b"content-length:")
            length = 0 if at < 0 else int(lower[at + 15 :].split(b"\r\n", 1)[0])
            if len(rest) < length:
                self._needed = len(head) + 4 + length
                return
            body, self._data = rest[:length], rest[length:]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        write = self._transport.write
        if head.startswith(b"GET") or b"abort_request" in head[:40]:
            write(HEAD % len(INFO) + INFO)
        elif b'"stream":true' not in body and b'"stream": true' not in body:
            write(HEAD % len(WHOLE) + WHOLE)
        elif not self._gap_s:
            write(STREAM)
            for _ in range(self._tokens):
                write(chunk(EVENT))
            write(chunk(DONE) + b"0\r\n\r\n")
        else:
            asyncio.get_running_loop().create_task(self._slowly())

    async def _slowly(self) -> None:
        self._transport.write(STREAM)
        for at in range(self._tokens):
            await asyncio.sleep(self._gap_s if at else 0.0)
            self._transport.write(chunk(EVENT))
        self._transport.write(chunk(DONE) + b"0\r\n\r\n")


async def main(port: int, tokens: int, gap_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Instant(tokens, gap_s), "127.0.0.1", port, backlog=4096
    )
    await server.serve_forever()


if __name__ == "__main__":
    given = [*sys.argv[1:], "64", "0"]
    uvloop.run(main(int(given[0]), int(given[1]), float(given[2]) if len(sys.argv) > 3 else 0.0))
