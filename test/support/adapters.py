"""LoRA adapters for the model that the CPU platform serves, loaded into running servers."""

import json
from pathlib import Path

import httpx
import numpy as np

from kairos.cluster import Cluster

RANK = 4
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")

# Flags of servers that load adapters.
LORA = (
    "--enable-lora",
    *("--lora-backend", "torch_native"),
    *("--max-lora-rank", str(RANK)),
    *("--lora-target-modules", *_PROJECTIONS),
)


def write_adapter(folder: Path, model: Path, seed: int) -> Path:
    """Write an adapter of random weights for the model in `model`, and return `folder`.

    The weights are large enough that every seed gives different tokens.
    """
    from safetensors.numpy import save_file

    random = np.random.default_rng(seed)
    config = json.loads((model / "config.json").read_text())
    hidden, head = config["hidden_size"], config["head_dim"]
    query, key_value = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    sizes = {
        "q_proj": (hidden, query),
        "k_proj": (hidden, key_value),
        "v_proj": (hidden, key_value),
        "o_proj": (query, hidden),
    }
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name, (inputs, outputs) in sizes.items():
            place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            for part, shape in (("lora_A", (RANK, inputs)), ("lora_B", (outputs, RANK))):
                values = random.standard_normal(shape, dtype=np.float32)
                weights[f"{place}.{part}.weight"] = values / np.float32(shape[1] ** 0.5)
    folder.mkdir(parents=True)
    save_file(weights, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    description = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": list(_PROJECTIONS),
    }
    (folder / "adapter_config.json").write_text(json.dumps(description))
    return folder


def load_adapter(cluster: Cluster, name: str, folder: Path) -> None:
    """Load the adapter in `folder` into every server as `name`; requests name it in `lora_path`."""
    for server in (*cluster.prefill, *cluster.decode):
        body = {"lora_name": name, "lora_path": str(folder)}
        loaded = httpx.post(f"{server.url}/load_lora_adapter", json=body, timeout=60)
        assert loaded.status_code == 200, loaded.text
