"""What the router learns from /server_info, of servers with and without Kairos."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from kairos.router.workers.server_info import ServerInfo, read_server_info


def info(**fields: Any) -> ServerInfo:
    found = read_server_info(orjson.dumps(fields))
    assert found is not None
    return found


def model(folder: Path, config: object) -> str:
    (folder / "config.json").write_bytes(orjson.dumps(config))
    return str(folder)


def test_a_kairos_server_tells_its_limits_itself(tmp_path: Path) -> None:
    kairos = {"vocab_size": 5_000, "context_length": 2_048, "epoch": "e"}
    found = info(
        model_path=model(tmp_path, {"vocab_size": 7}),
        max_req_input_len=4_000,
        max_total_num_tokens=90_000,
        internal_states=[{"kairos": kairos, "max_running_requests": 8}],
        kairos_slo_class=["chat=500,50", 3],
    )
    assert (found.vocab_size, found.prompt_tokens) == (5_000, 2_048)
    assert (found.kv_tokens, found.max_running) == (90_000, 8)
    assert found.kairos
    assert found.slo_classes == {"chat"}


@pytest.mark.parametrize(
    ("config", "overrides", "expected"),
    [
        ({"vocab_size": 32_000}, None, 32_000),
        ({"text_config": {"vocab_size": 200_064}}, "{}", 200_064),
        ({"vocab_size": 10, "text_config": {"vocab_size": 20}}, None, 20),
        ({"vocab_size": 32_000}, '{"vocab_size": 64000}', 64_000),
        ({"vocab_size": "many"}, None, None),
        ([], None, None),
        ({"vocab_size": 32_000}, "{", None),
    ],
)
def test_the_vocabulary_of_a_plain_server_is_that_of_its_models_folder(
    tmp_path: Path, config: object, overrides: str | None, expected: int | None
) -> None:
    path = model(tmp_path, config)
    found = info(model_path=path, max_req_input_len=4_090, json_model_override_args=overrides)
    assert (found.vocab_size, found.prompt_tokens) == (expected, 4_090)
    assert not found.kairos


@pytest.mark.parametrize("path", ["meta-llama/Llama-3.1-8B", "/no/such/folder", "", 7, None])
def test_a_model_elsewhere_leaves_the_vocabulary_unknown(path: object) -> None:
    assert info(model_path=path).vocab_size is None


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"null"])
def test_another_answer_is_no_server_info(data: bytes) -> None:
    assert read_server_info(data) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"internal_states": 3},
        {"internal_states": [None, {}]},
        {"internal_states": [{"kairos": 3}]},
        {"max_req_input_len": True, "max_total_num_tokens": -1, "kairos_slo_class": "chat=1,1"},
    ],
)
def test_fields_of_another_shape_are_unknown(fields: dict[str, Any]) -> None:
    found = info(**fields)
    assert (found.prompt_tokens, found.kv_tokens, found.telemetry) == (None, None, None)
    assert not found.slo_classes


def test_every_restart_has_another_start_id() -> None:
    first = info(random_seed=1, internal_states=[{"kairos": {"epoch": "a"}}])
    again = info(random_seed=1, internal_states=[{"kairos": {"epoch": "a"}}])
    assert first.start_id == again.start_id
    for other in (
        info(random_seed=2, internal_states=[{"kairos": {"epoch": "a"}}]),
        info(random_seed=1, internal_states=[{"kairos": {"epoch": "b"}}]),
    ):
        assert other.start_id != first.start_id


def test_a_server_that_cuts_long_prompts_sets_no_limit_to_them() -> None:
    assert info(max_req_input_len=4_090, allow_auto_truncate=True).prompt_tokens is None
