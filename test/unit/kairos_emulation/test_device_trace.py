"""The trace file."""

import os
import threading

from kairos_emulation.device_trace import (
    DeviceTimes,
    DeviceTrace,
    DeviceWork,
    read_device_trace,
)

WORK = DeviceWork("decode", batch=3, tokens=3, context=900, joined=["a"], left=["b", "c"])
TIMES = DeviceTimes(launch_s=1.25, duration_s=0.01, end_s=1.26, bubble_s=0.0)


def test_trace_is_read_as_it_was_written(tmp_path):
    DeviceTrace(str(tmp_path / "t"), "decode").write(WORK, TIMES)
    (record,) = read_device_trace(tmp_path / "t")
    assert (record.role, record.pid) == ("decode", os.getpid())
    for name, value in (WORK._asdict() | TIMES._asdict()).items():
        assert getattr(record, name) == (list(value) if value == () else value), name


def test_servers_may_share_a_file(tmp_path):
    def write(role):
        trace = DeviceTrace(str(tmp_path / "t"), role)
        for _ in range(200):
            trace.write(WORK, TIMES)

    threads = [threading.Thread(target=write, args=(role,)) for role in ("prefill", "decode")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    roles = [record.role for record in read_device_trace(tmp_path / "t")]
    assert (roles.count("prefill"), roles.count("decode")) == (200, 200)
