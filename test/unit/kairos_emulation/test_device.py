"""The emulated accelerator: the cost of its work, its timelines and its trace."""

import json
import threading

import msgspec
import pytest

from kairos.errors import InputError
from kairos.latency import Chunk, load_profile
from kairos_emulation import device, streams
from kairos_emulation.device import EmulatedDevice
from kairos_emulation.device_trace import DeviceTrace, read_device_trace
from kairos_emulation.rank_step import RankStep, RankWork
from kairos_emulation.streams import Stream, StreamContext


@pytest.fixture
def accelerator():
    return EmulatedDevice(load_profile("tiny-fast"))


@pytest.fixture(autouse=True)
def _no_device_of_the_process():
    device.set_current(None)
    yield
    device.set_current(None)


def test_a_prefill_batch_takes_the_profiles_time_on_the_current_stream(accelerator):
    chunks = [Chunk(0, 500), Chunk(2048, 100)]
    with StreamContext(Stream()) as stream:
        begin = streams.now()
        accelerator.prefill(chunks)
    assert stream.end - begin >= accelerator.profile.prefill.batch_s(chunks)
    assert stream.end - begin < accelerator.profile.prefill.batch_s(chunks) + 1.0


def test_a_decode_step_takes_the_profiles_time_behind_earlier_work(accelerator):
    with StreamContext(Stream()) as stream:
        stream.launch(1000.0)
        begin = stream.end
        accelerator.decode([100, 300])
    assert stream.end - begin == pytest.approx(accelerator.profile.decode.step_s(2, 400, 300))


def test_launch_returns_before_its_end_with_overlap_and_at_its_end_without(accelerator):
    with StreamContext(Stream()) as stream:
        accelerator.decode([10])
        assert not stream.query()
        accelerator.blocking = True
        accelerator.decode([10])
    assert streams.now() >= stream.end - streams.WAKE_UP_S


def test_transfers_share_one_link(accelerator, tmp_path):
    accelerator.trace = DeviceTrace(str(tmp_path / "trace"), "prefill")
    tokens = 20_000  # 26 ms on the wire
    wire = accelerator.profile.kv.wire_s(tokens)
    begin = streams.now()
    threads = [threading.Thread(target=accelerator.transfer, args=(tokens,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert streams.now() - begin >= 3 * wire - streams.WAKE_UP_S
    ends = sorted(record.end_s for record in read_device_trace(tmp_path / "trace"))
    assert ends[1] - ends[0] == pytest.approx(wire)
    assert ends[2] - ends[1] == pytest.approx(wire)


def test_a_transfer_over_an_idle_link_does_not_pay_for_the_idle_time(accelerator):
    accelerator.transfer(1000)
    first = accelerator.link_end
    streams.sleep_until(first + 0.005)
    accelerator.transfer(1000)
    assert accelerator.link_end >= first + 0.005


def test_trace_records_every_launch_and_the_idle_time_before_it(accelerator, tmp_path):
    accelerator.trace = DeviceTrace(str(tmp_path / "trace"), "decode")
    with StreamContext(Stream()) as stream:
        accelerator.prefill([Chunk(16, 8), Chunk(0, 4)])
        accelerator.decode([25, 5])
        streams.sleep_until(stream.end + 0.002)
        accelerator.decode([26, 6])
    prefill, queued, late = read_device_trace(tmp_path / "trace")
    assert (prefill.kind, prefill.batch, prefill.tokens, prefill.context) == ("prefill", 2, 12, 16)
    assert (queued.kind, queued.batch, queued.tokens, queued.context) == ("decode", 2, 2, 30)
    assert prefill.bubble_s == queued.bubble_s == 0.0
    assert queued.end_s - prefill.end_s == pytest.approx(queued.duration_s)
    assert late.bubble_s >= 0.002 - streams.WAKE_UP_S
    assert prefill.role == "decode"


def test_start_takes_the_schedule_and_the_trace_file(monkeypatch, tmp_path):
    monkeypatch.setenv("KAIROS_EMULATION_PROFILE", "tiny-fast")
    monkeypatch.setenv("KAIROS_EMULATION_TRACE", str(tmp_path / "trace"))
    device.configure()
    device.start("prefill", blocking=True)
    device.transfer(10)
    assert device.current().blocking
    assert [record.role for record in read_device_trace(tmp_path / "trace")] == ["prefill"]


def test_a_trace_file_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    device.set_current(EmulatedDevice(load_profile("tiny-fast")))
    monkeypatch.setenv("KAIROS_EMULATION_TRACE", str(tmp_path))
    with pytest.raises(InputError, match="KAIROS_EMULATION_TRACE"):
        device.start("prefill", blocking=False)


def test_the_default_profile_is_used_when_none_is_named(monkeypatch):
    monkeypatch.delenv("KAIROS_EMULATION_PROFILE", raising=False)
    device.configure()
    assert device.current().profile.name == "minimax-m2.5-tp4-h200"


def test_without_the_platform_there_is_no_accelerator():
    with pytest.raises(RuntimeError, match="kairos-emulated"):
        device.current()


def test_trace_names_the_requests_of_a_prefill_and_the_changes_between_steps(accelerator, tmp_path):
    accelerator.trace = DeviceTrace(str(tmp_path / "trace"), "decode")
    with StreamContext(Stream()):
        accelerator.prefill([Chunk(16, 8), Chunk(0, 4)], ["a", "b"])
        accelerator.decode([25, 5], ["a", "b"])
        accelerator.decode([26, 6], ["b", "a"])
        accelerator.decode([7, 1], ["b", "c"])
    prefill, *steps = read_device_trace(tmp_path / "trace")
    assert (prefill.rids, prefill.new) == (["a", "b"], [8, 4])
    assert [(step.joined, step.left) for step in steps] == [
        (["a", "b"], []),
        ([], []),
        (["c"], ["a"]),
    ]


def test_a_step_of_ranks_begins_with_the_last_rank_and_lasts_as_long_as_the_slowest(
    accelerator, tmp_path
):
    slow = RankWork(prefill=False, tokens=1, attention_pairs=1_000_000)
    short = RankWork(prefill=False, tokens=1, attention_pairs=100)
    accelerator.trace = DeviceTrace(str(tmp_path / "trace"), "decode")
    accelerator.rank = 1
    accelerator.step = RankStep((slow, short), streams.now() + 1000.0)
    with StreamContext(Stream()) as stream:
        accelerator.decode([100], ["r"])
        step, accelerator.step = accelerator.step, RankStep((slow, short._replace(tokens=0)), 0.0)
        ended = stream.end
        accelerator.idle()
    assert step is None
    decode, idle = read_device_trace(tmp_path / "trace")
    assert decode.end_s == ended == accelerator.free_s - idle.duration_s
    assert ended >= streams.now() + 999.0
    model = accelerator.profile.decode
    assert decode.duration_s == pytest.approx(
        model.fixed_s + model.per_request_s + 1e6 * model.per_context_token_s
    )
    assert decode.waited_s == pytest.approx(999_900 * model.per_context_token_s)
    assert (idle.kind, idle.batch) == ("idle", 0)
    assert idle.end_s - ended == pytest.approx(idle.duration_s)


def test_a_server_without_ranks_has_no_idle_steps(accelerator):
    with StreamContext(Stream()) as stream:
        accelerator.idle()
    assert stream.end == 0.0


def test_a_profile_that_needs_the_longest_context_is_refused_with_ranks(monkeypatch, tmp_path):
    profile = msgspec.to_builtins(load_profile("tiny-fast"))
    profile["decode"]["straggler"] = 0.5
    (tmp_path / "p.json").write_text(json.dumps(profile))
    monkeypatch.setenv("KAIROS_EMULATION_PROFILE", str(tmp_path / "p.json"))
    device.configure()
    device.start("decode", blocking=False, rank=0, ranks=1)
    with pytest.raises(InputError, match=r"decode\.straggler must be 0"):
        device.start("decode", blocking=False, rank=0, ranks=2)
