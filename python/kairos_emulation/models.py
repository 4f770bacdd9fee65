"""Model directories that the two platforms serve.

    python -m kairos_emulation.models tiny-random DIR
    python -m kairos_emulation.models emulated DIR

Neither torch nor transformers is needed. Writing over a finished directory does nothing.
"""

import argparse
import itertools
import json
import string
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from kairos.errors import InputError
from kairos.validation import check_choice
from kairos_emulation.launch import MAX_CONTEXT

ModelKind = Literal["tiny-random", "emulated"]

VOCABULARY = 1024
BOS, EOS = 0, 1
# Ids of the printable ASCII characters "!" to "~". The detokenizer holds back tokens that are half
# a UTF-8 character, which would falsify the time of the first token.
PRINTABLE = (2, 95)
_VERSION = 2
_HIDDEN, _INTERMEDIATE, _LAYERS, _HEADS, _KV_HEADS, _HEAD_DIM = 256, 512, 3, 4, 2, 64


def write_model(kind: ModelKind, folder: str | Path) -> bool:
    """Write a complete model directory.

    "tiny-random" is a 3-layer fp32 Qwen3 with random weights; upstream's Llama has no data-parallel
    attention. The weights are scaled so that greedy decoding produces many different tokens and
    depends on the KV cache. "emulated" is the configuration of `kairos_emulation.model`.

    Args:
        kind: "tiny-random" or "emulated".
        folder: directory to write.

    Returns:
        False if the directory holds this model already.

    Raises:
        InputError: unknown kind, or `folder` holds something else or cannot be written.
    """
    check_choice("model", kind, get_args(ModelKind))
    folder = Path(folder)
    stamp = {"kairos_model": kind, "kairos_model_version": _VERSION}
    config = _tiny_config() if kind == "tiny-random" else _emulated_config()
    if _holds(folder, stamp):
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Another process may write the same model. Each has a copy of its own; the last stays.
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as place:
            partial = Path(place) / "model"
            partial.mkdir()
            _write_tokenizer(partial)
            _write_weights(partial, _tiny_weights() if kind == "tiny-random" else _no_weights())
            _write_json(partial / "config.json", config | stamp)
            if _holds(folder, stamp):
                return False
            if folder.exists():
                folder.rename(Path(place) / "outdated")
            partial.rename(folder)
    except OSError as error:
        if _holds(folder, stamp):
            return False
        raise InputError(f"cannot write model to {folder}: {error}") from error
    return True


def _holds(folder: Path, stamp: Mapping[str, object]) -> bool:
    """Return whether `folder` holds the model; refuse a folder that holds something else."""
    if not folder.exists():
        return False
    try:
        found = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        found = {}
    if stamp.items() <= found.items():
        return True
    if "kairos_model" not in found and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not a Kairos model directory; name another")
    return False


def _tiny_config() -> dict[str, object]:
    return _base_config() | {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "dtype": "float32",
        "hidden_size": _HIDDEN,
        "intermediate_size": _INTERMEDIATE,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_DIM,
        "max_position_embeddings": 32_768,
    }


def _emulated_config() -> dict[str, object]:
    # One KV head of size 8 in bf16 takes 32 bytes per token: 32 MB for a million tokens.
    return _base_config() | {
        "model_type": "llama",
        "architectures": ["KairosEmulatedForCausalLM"],
        "dtype": "bfloat16",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": MAX_CONTEXT,
        "output_tokens": list(PRINTABLE),
    }


def _base_config() -> dict[str, object]:
    return {
        "vocab_size": VOCABULARY,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    }


def _pieces() -> tuple[list[str], list[tuple[str, str]]]:
    """Return tokens by id, and merges: bytes, a space before a letter, pairs of small letters."""
    from tokenizers.pre_tokenizers import ByteLevel

    space = "Ġ"
    merges = [
        *((space, letter) for letter in string.ascii_letters),
        *itertools.product(string.ascii_lowercase, string.ascii_lowercase),
    ]
    alphabet = sorted(ByteLevel.alphabet())
    return ["<s>", "</s>", *alphabet, *(a + b for a, b in merges)], merges


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, merges = _pieces()
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "</s>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": MAX_CONTEXT,
            "chat_template": "{% for message in messages %}{{ message['role'] }}: "
            "{{ message['content'] }}\n{% endfor %}assistant:",
        },
    )


def _tiny_weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)

    def matrix(rows: int, columns: int, gain: float = 1.0) -> np.ndarray:
        values = random.standard_normal((rows, columns), dtype=np.float32)
        return values * np.float32(gain / columns**0.5)

    ones = np.ones(_HIDDEN, dtype=np.float32)
    head = matrix(VOCABULARY, _HIDDEN, gain=3.0)
    head[_unprintable()] = 0.0  # a zero logit is never the largest of a thousand
    weights = {
        "model.embed_tokens.weight": matrix(VOCABULARY, _HIDDEN, gain=_HIDDEN**0.5),
        "model.norm.weight": ones,
        "lm_head.weight": head,
    }
    sharp = np.full(_HEAD_DIM, 1.6, dtype=np.float32)
    query, key_value = _HEADS * _HEAD_DIM, _KV_HEADS * _HEAD_DIM
    for layer in range(_LAYERS):
        # Gains above 1 sharpen attention and keep the residual branches as strong as the main path.
        weights |= {
            f"model.layers.{layer}.{name}.weight": values
            for name, values in {
                "input_layernorm": ones,
                "self_attn.q_proj": matrix(query, _HIDDEN),
                "self_attn.k_proj": matrix(key_value, _HIDDEN),
                "self_attn.v_proj": matrix(key_value, _HIDDEN, gain=1.5),
                "self_attn.o_proj": matrix(_HIDDEN, query, gain=2.0),
                "self_attn.q_norm": sharp,
                "self_attn.k_norm": sharp,
                "post_attention_layernorm": ones,
                "mlp.gate_proj": matrix(_INTERMEDIATE, _HIDDEN),
                "mlp.up_proj": matrix(_INTERMEDIATE, _HIDDEN),
                "mlp.down_proj": matrix(_HIDDEN, _INTERMEDIATE, gain=1.5),
            }.items()
        }
    return weights


def _unprintable() -> list[int]:
    """Return ids that must not be generated: special, unused, or not printable ASCII."""
    tokens, _ = _pieces()
    allowed = set(string.ascii_letters + string.digits + string.punctuation + "Ġ")
    return [
        number
        for number in range(VOCABULARY)
        if number in (BOS, EOS) or number >= len(tokens) or not set(tokens[number]) <= allowed
    ]


def _no_weights() -> dict[str, np.ndarray]:
    # SGLang refuses to start without a weight file, and its dummy loader would overwrite the
    # parameters that the model builds itself.
    return {"unused": np.zeros(1, dtype=np.float32)}


def _write_weights(folder: Path, weights: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the model that the command line asks for.

    Args:
        argv: arguments without the program's name; None takes the process's own.

    Returns:
        0, or 2 for bad input.
    """
    parser = argparse.ArgumentParser(
        prog="python -m kairos_emulation.models",
        description="Write a model directory for a platform without a GPU.",
    )
    parser.add_argument(
        "kind",
        choices=get_args(ModelKind),
        help="tiny-random: a small model that is computed; emulated: one that takes modelled time",
    )
    parser.add_argument("folder", metavar="DIR", help="directory to write")
    options = parser.parse_args(argv)
    try:
        written = write_model(options.kind, options.folder)
    except InputError as error:
        print(f"kairos_emulation.models: {error}", file=sys.stderr)
        return 2
    print(f"{options.kind} model {'written to' if written else 'already in'} {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
