"""The trace file."""

import threading

from kairos_emulation.device_trace import DeviceTrace, read_device_trace

FIELDS = {
    "kind": "decode",
    "batch": 3,
    "tokens": 3,
    "context": 900,
    "launch_s": 1.25,
    "duration_s": 0.01,
    "end_s": 1.26,
    "bubble_s": 0.0,
}


def test_what_is_written_is_read(tmp_path):
    DeviceTrace(str(tmp_path / "t"), "decode").write(**FIELDS)
    (record,) = read_device_trace(tmp_path / "t")
    assert {name: getattr(record, name) for name in FIELDS} == FIELDS
    assert record.role == "decode"


def test_servers_may_share_a_file(tmp_path):
    def write(role):
        trace = DeviceTrace(str(tmp_path / "t"), role)
        for _ in range(200):
            trace.write(**FIELDS)

    threads = [threading.Thread(target=write, args=(role,)) for role in ("prefill", "decode")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    roles = [record.role for record in read_device_trace(tmp_path / "t")]
    assert (roles.count("prefill"), roles.count("decode")) == (200, 200)
