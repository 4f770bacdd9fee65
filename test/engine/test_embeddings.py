"""Embedding requests carry no SLO. Their order is Kairos', their vectors are upstream's."""

import json
import os
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kairos_emulation.cluster import platform_model
from kairos_emulation.launch import settings

ENGINE = """
import json, sys
from sglang.srt.entrypoints.engine import Engine

if __name__ == "__main__":
    engine = Engine(**json.loads(sys.argv[1]))
    vectors = [answer["embedding"] for answer in engine.encode(json.loads(sys.argv[2]))]
    (state,) = engine.get_server_info()["internal_states"]
    print(json.dumps({"vectors": vectors, "kairos": state.get("kairos")}))
    engine.shutdown()
"""


def embedded(folder: Path, texts: list[str], **env: str) -> dict[str, Any]:
    script = folder / "engine.py"
    script.write_text(ENGINE)
    model = platform_model("cpu", folder)
    arguments = {
        "model_path": str(model),
        "is_embedding": True,
        "device": "cpu",
        "dtype": "float32",
        "attention_backend": "torch_native",
        "chunked_prefill_size": 256,
        "max_total_tokens": 20_000,
        "max_running_requests": 8,
        "log_level": "error",
    }
    done = subprocess.run(
        [sys.executable, script, json.dumps(arguments), json.dumps(texts)],
        env={**os.environ, **settings("cpu", "single", None, model).env, **env},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith("{"))
    )
    return answer


@pytest.mark.long
def test_vectors_are_those_of_upstream(tmp_path: Path) -> None:
    letters = np.random.default_rng(31).choice([*string.ascii_letters], 3000)
    texts = ["".join(letters[:length]) for length in (20, 300, 900, 1500, 3000)]
    upstream = embedded(tmp_path, texts)
    kairos = embedded(tmp_path, texts, SGLANG_KAIROS="1")
    assert upstream["kairos"] is None
    assert kairos["kairos"]["prefill"]["ordered_passes"] > 0
    assert kairos["kairos"]["requests_by_class"] == {"default": len(texts)}
    assert len({tuple(vector) for vector in upstream["vectors"]}) == len(texts)
    for vector, reference in zip(kairos["vectors"], upstream["vectors"], strict=True):
        assert vector == pytest.approx(reference, abs=1e-4)
