"""The GPU profiler on a CPU with toy shapes: its results, not its speed."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from kairos.errors import InputError
from kairos.latency import Chunk, load_profile

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[3] / "scripts" / "profile_gpu.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("profile_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["profile_gpu"] = module
    sys.path.insert(0, str(SCRIPT.parent))  # as Python does for a script
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


def test_profile_and_samples_are_written(script: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "toy.json"
    flags = ["--device", "cpu", "--toy", "--dtype", "float32", "--repeats", "1", "--name", "toy"]
    assert script.main([*flags, "--out", str(out)]) == 0
    profile = load_profile(out)
    assert (profile.name, profile.provenance.kind) == ("toy", "measured")
    assert "Toy shapes: the figures have no meaning" in profile.provenance.source
    assert profile.kv == load_profile("minimax-m2.5-tp4-h200").kv
    samples = json.loads(out.with_suffix(".samples.json").read_text())
    assert {s["context"] for s in samples["prefill"]} >= {0, 4096}
    assert max(s["batch"] for s in samples["decode"]) == 16
    assert all(s["seconds"] > 0 for s in (*samples["prefill"], *samples["decode"]))


def test_experts_match_a_loop_over_tokens(script: ModuleType) -> None:
    import torch

    layer = script.Layer(script.TOY, "cpu", torch.float32)
    x = torch.randn(7, script.TOY.hidden)
    weight, chosen = (x @ layer.router).softmax(-1).topk(script.TOY.top_k)
    wanted = torch.zeros_like(x)
    for token in range(7):
        for w, e in zip(weight[token], chosen[token], strict=True):
            gate, value = (x[token] @ layer.up[e]).chunk(2)
            wanted[token] += w * ((torch.nn.functional.silu(gate) * value) @ layer.down[e])
    assert torch.allclose(layer.experts(x), wanted, atol=1e-6)


def test_true_shapes_are_those_of_the_shipped_profile(script: ModuleType) -> None:
    shapes = script.Shapes()
    kv_bytes = 2 * shapes.layers * shapes.kv_heads * shapes.head_dim * 2
    assert kv_bytes == load_profile("minimax-m2.5-tp4-h200").kv.bytes_per_token
    assert (
        shapes.top_k / shapes.experts
        == load_profile("minimax-m2.5-tp4-h200").decode.expert_fraction
    )
    experts = shapes.layers * shapes.experts * 3 * shapes.hidden * shapes.expert_width
    assert experts == pytest.approx(224.7e9, rel=1e-3)


def test_ranks_must_divide_the_shapes(script: ModuleType) -> None:
    with pytest.raises(InputError, match="--ranks 5"):
        script.Shapes(ranks=5)


def test_missing_gpu_is_reported(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert script.main(["--out", str(tmp_path / "p.json")]) == 2
    assert "no GPU here" in capsys.readouterr().err


def test_chunks_behind_a_prefix_and_batches_run(script: ModuleType) -> None:
    import torch

    layer = script.Layer(script.TOY, "cpu", torch.float32)
    with torch.inference_mode():
        layer.prefill([Chunk(10, 5), Chunk(0, 3)])()
        layer.decode(3, 20)()
        layer.logits(3)()
