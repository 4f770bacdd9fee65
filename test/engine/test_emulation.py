"""The emulated accelerator under real SGLang: its clock, its tokens and its failures at start.

Times are compared with each other and with lower bounds from the profile: a busy machine makes
events later, and no event may be earlier.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import pytest

from kairos.cluster import Cluster, ServerDiedError
from kairos.latency import Chunk, load_profile
from kairos.router.workers.server_info import read_server_info
from kairos_emulation.device_trace import DeviceRecord, read_device_trace
from kairos_emulation.models import PRINTABLE, VOCABULARY
from kairos_emulation.streams import WAKE_UP_S
from support.clusters import EMULATED_PAIR, on
from support.configs import OFF, TRACE
from support.pair import send, wait_idle

BLOCKING = replace(OFF, args=("--disable-overlap-schedule",))
SINGLE = replace(EMULATED_PAIR, prefill=0, decode=0)
PROFILE = load_profile(EMULATED_PAIR.profile)
CHUNK = PROFILE.limits.chunk_tokens
ROUNDING_S = 1e-6


@pytest.fixture(scope="module", autouse=True)
def _no_trace_left() -> Iterator[None]:
    yield
    TRACE.unlink(missing_ok=True)


def prompt(length: int) -> list[int]:
    """Return fresh ids, so that no prefix is cached. Upstream reports the last id as 0."""
    return np.random.default_rng().integers(10, VOCABULARY - 1, size=length).tolist()


def body(ids: list[int], new_tokens: int, temperature: float = 0, **fields: object) -> dict:
    parameters = {"max_new_tokens": new_tokens, "temperature": temperature, "ignore_eos": True}
    return {"input_ids": ids, "sampling_params": parameters, **fields}


def generate(cluster: Cluster, request: dict) -> dict:
    answer = send(cluster, request).decode
    assert answer.status_code == 200, answer.text
    return answer.json()


def traced(cluster: Cluster, *requests: dict) -> dict[str, list[DeviceRecord]]:
    """Return the records of these requests, which are sent together, by kind."""
    before = len(read_device_trace(TRACE))
    with ThreadPoolExecutor(len(requests)) as pool:
        list(pool.map(lambda request: generate(cluster, request), requests))
    records = read_device_trace(TRACE)[before:]
    return {
        kind: [record for record in records if record.kind == kind]
        for kind in ("prefill", "decode", "transfer")
    }


@on(OFF, long=(BLOCKING,))
def test_decode_steps_take_the_profiles_time_one_after_the_other(cluster):
    steps = traced(cluster, *(body(prompt(length), 40) for length in (5, 80, 300)))["decode"]
    assert {step.batch for step in steps} >= {3}
    for step in steps:
        assert step.duration_s == PROFILE.decode.step_s(step.batch, step.context)
    for earlier, later in pairwise(steps):
        assert later.end_s - earlier.end_s >= later.duration_s - ROUNDING_S
        assert later.bubble_s == pytest.approx(max(0.0, later.launch_s - earlier.end_s))


@on(OFF)
def test_with_overlap_the_next_step_is_launched_during_this_one(cluster):
    steps = traced(cluster, body(prompt(50), 40))["decode"]
    ahead = [later.launch_s < earlier.end_s for earlier, later in pairwise(steps)]
    assert sum(ahead) > len(ahead) / 2


@on(OFF)
def test_a_router_learns_the_limits_of_a_server_without_kairos(cluster):
    for server in (*cluster.prefill, *cluster.decode):
        info = read_server_info(httpx.get(f"{server.url}/server_info", timeout=30.0).content)
        assert info is not None
        assert not info.kairos
        assert info.vocab_size == VOCABULARY
        assert info.prompt_tokens is not None
        assert info.prompt_tokens < info.kv_tokens


@on(long=(BLOCKING,))
def test_without_overlap_a_step_is_launched_after_the_last_one_ended(cluster):
    records = traced(cluster, body(prompt(2 * CHUNK), 40))
    for earlier, later in (*pairwise(records["decode"]), *pairwise(records["prefill"])):
        assert later.launch_s >= earlier.end_s - WAKE_UP_S


@on(OFF, long=(BLOCKING,))
def test_long_prompt_is_prefilled_in_chunks_that_cost_their_context(cluster):
    batches = traced(cluster, body(prompt(2 * CHUNK + 500), 1))["prefill"]
    assert [(batch.context, batch.tokens) for batch in batches] == [
        (0, CHUNK),
        (CHUNK, CHUNK),
        (2 * CHUNK, 500),
    ]
    for batch in batches:
        chunk = Chunk(batch.context, batch.tokens)
        assert batch.duration_s == pytest.approx(PROFILE.prefill.batch_s([chunk]))
    for earlier, later in pairwise(batches):
        assert later.end_s - earlier.end_s >= later.duration_s - ROUNDING_S


@on(OFF, long=(BLOCKING,))
def test_the_whole_kv_cache_crosses_the_link_between_prefill_and_decode(cluster):
    length = 2 * CHUNK + 500
    wait_idle(cluster)
    # Its first token may be that of a cached prompt by chance, and would be sent by itself.
    httpx.post(f"{cluster.prefill[0].url}/flush_cache").raise_for_status()
    records = traced(cluster, body(prompt(length), 3))
    transfers = records["transfer"]
    assert sum(transfer.tokens for transfer in transfers) == length
    for transfer in transfers:
        assert transfer.duration_s == pytest.approx(PROFILE.kv.wire_s(transfer.tokens))
    for earlier, later in pairwise(transfers):
        assert later.end_s - earlier.end_s >= later.duration_s - ROUNDING_S
    # A chunk is sent once it is computed, and the last one before the first decode step.
    for batch, transfer in zip(records["prefill"], transfers, strict=True):
        assert transfer.launch_s >= batch.end_s - WAKE_UP_S
    assert records["decode"][0].launch_s >= transfers[-1].end_s - WAKE_UP_S


@on(OFF, long=(BLOCKING,))
def test_a_cached_prefix_costs_no_prefill_time(cluster):
    ids = prompt(1000)
    traced(cluster, body(ids, 2))
    again = traced(cluster, body([*ids, *prompt(100)], 2))
    assert [(batch.context, batch.tokens) for batch in again["prefill"]] == [(1000, 100)]
    assert sum(transfer.tokens for transfer in again["transfer"]) == 1100


@on(OFF, long=(SINGLE, BLOCKING))
def test_tokens_follow_from_the_sequence_alone(cluster):
    torch = pytest.importorskip("torch")
    from kairos_emulation.codes import successors

    def expected(ids: list[int], count: int) -> list[int]:
        text = list(ids)
        for _ in range(count):
            last, position = torch.tensor([text[-1]]), torch.tensor([len(text) - 1])
            text.append(int(successors(last, position, *PRINTABLE)))
        return text[len(ids) :]

    prompts = [prompt(length) for length in (1, 30, 700, CHUNK + 900)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(lambda ids: ask(cluster, body(ids, 30)), prompts))
    alone = ask(cluster, body(prompts[2], 30, temperature=1.0))
    assert [answer["output_ids"] for answer in together] == [expected(ids, 30) for ids in prompts]
    assert alone["output_ids"] == together[2]["output_ids"]
    assert len(alone["text"]) == 30


@on(OFF, long=(SINGLE,))
def test_logprobs_of_output_tokens_are_answered(cluster):
    request = body(prompt(40), 5, return_logprob=True, top_logprobs_num=2)
    answer = ask(cluster, request)["meta_info"]
    chosen = [token for _, token, _ in answer["output_token_logprobs"]]
    assert all(logprob == pytest.approx(0) for logprob, _, _ in answer["output_token_logprobs"])
    assert [top[0][1] for top in answer["output_top_logprobs"]] == chosen
    assert all(top[1][0] < -30 for top in answer["output_top_logprobs"])


@on(long=(SINGLE,))
def test_logprobs_of_input_tokens_are_answered(cluster):
    ids = prompt(CHUNK + 40)
    request = body(ids, 1, return_logprob=True, logprob_start_len=10)
    answer = ask(cluster, request)["meta_info"]["input_token_logprobs"]
    assert [token for _, token, _ in answer] == ids[10:]
    assert all(logprob <= 0 for logprob, _, _ in answer[1:])


def ask(cluster: Cluster, request: dict) -> dict:
    """Return one answer, of a pair or a single server."""
    if cluster.decode:
        return generate(cluster, request)
    answer = httpx.post(f"{cluster.url}/generate", json=request, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_bad_profile_stops_the_server_at_its_start(tmp_path):
    profile = tmp_path / "profile.json"
    profile.write_text('{"schema": 1,\n"name": 5}')
    with pytest.raises(ServerDiedError, match=r"line 2, field name") as died:
        started(tmp_path, {"KAIROS_EMULATION_PROFILE": str(profile)})
    assert "Traceback" not in str(died.value)


@pytest.mark.long
@pytest.mark.parametrize("hooks", ["COMMON", "EMULATED"])
def test_missing_hook_target_stops_the_server_at_its_start(tmp_path, hooks):
    (tmp_path / "sitecustomize.py").write_text(
        "from kairos_emulation import hooks\n"
        f"renamed = [h._replace(target=h.target + '_renamed') for h in hooks.{hooks}]\n"
        f"hooks.{hooks} = tuple(renamed)\n"
    )
    with pytest.raises(ServerDiedError, match=r"emulation hooks not applied: .*_renamed"):
        started(tmp_path, {"PYTHONPATH": str(tmp_path)})


def started(folder: Path, env: dict[str, str]) -> None:
    """Start a single emulated server for this test, and stop it."""
    spec = SINGLE.spec(folder / "models")
    with Cluster(replace(spec, env={**spec.env, **env}), folder / "logs"):
        pass
