"""Ask for an answer with SLOs, through the OpenAI client.

    python examples/openai_client.py http://127.0.0.1:30000/v1 MODEL

The headers state the SLO of one request; `extra_body={"kairos": {...}}` does the same in the body.
The answer says in `x-kairos-slo-applied` which SLO was applied.
"""

import sys
import time

from openai import OpenAI


def main(base_url: str, model: str) -> int:
    client = OpenAI(base_url=base_url, api_key="none")
    sent_s = time.monotonic()
    response = client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": "Say hello."}],
        max_tokens=8,
        stream=True,
        extra_headers={"x-kairos-slo-ttft-ms": "500", "x-kairos-slo-tpot-ms": "30"},
    )
    print(f"applied: {response.headers['x-kairos-slo-applied']}")
    first_s = None
    for chunk in response.parse():
        if chunk.choices and chunk.choices[0].delta.content:
            first_s = first_s or time.monotonic()
            print(chunk.choices[0].delta.content, end="", flush=True)
    print()
    if first_s is None:
        print("no token arrived", file=sys.stderr)
        return 1
    print(f"time to first token: {(first_s - sent_s) * 1e3:.0f} ms")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
