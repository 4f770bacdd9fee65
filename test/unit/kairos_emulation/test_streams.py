"""Virtual streams against a clock that only moves when a stream sleeps."""

import threading

import pytest

from kairos_emulation import streams
from kairos_emulation.streams import Event, Stream, StreamContext, current_stream


@pytest.fixture
def clock(monkeypatch):
    """The time in a list of one, which tests can set."""
    time = [100.0]
    monkeypatch.setattr(streams, "now", lambda: time[0])
    monkeypatch.setattr(
        streams.time, "sleep", lambda s: time.__setitem__(0, time[0] + s + streams.WAKE_UP_S)
    )
    return time


def test_work_on_an_idle_stream_starts_now_and_returns_at_once(clock):
    stream = Stream()
    assert stream.launch(0.5) == 100.5
    assert clock == [100.0]
    assert not stream.query()


def test_work_queues_behind_earlier_work(clock):
    stream = Stream()
    stream.launch(0.5)
    clock[0] = 100.2
    assert stream.launch(0.1) == pytest.approx(100.6)


def test_synchronize_sleeps_until_the_end_and_not_again(clock):
    stream = Stream()
    stream.launch(0.5)
    stream.synchronize()
    assert clock[0] == pytest.approx(100.5)
    assert stream.query()
    stream.synchronize()
    assert clock[0] == pytest.approx(100.5)


def test_an_event_is_the_point_at_which_it_was_recorded(clock):
    stream = Stream()
    stream.launch(0.5)
    event = Event(enable_timing=False)
    event.record(stream)
    stream.launch(9.0)
    assert not event.query()
    event.synchronize()
    assert clock[0] == pytest.approx(100.5)
    assert event.query()


def test_an_event_that_was_never_recorded_is_done(clock):
    assert Event().query()
    Event().synchronize()
    assert clock == [100.0]


@pytest.mark.parametrize(
    "order", [lambda a, b: b.wait_stream(a), lambda a, b: b.wait_event(a.record_event())]
)
def test_a_stream_that_waits_for_another_starts_after_it(clock, order):
    first, second = Stream(), Stream()
    first.launch(0.5)
    order(first, second)
    assert second.launch(0.1) == pytest.approx(100.6)
    assert first.end == 100.5


def test_waiting_for_a_stream_that_is_behind_changes_nothing(clock):
    first, second = Stream(), Stream()
    second.launch(1.0)
    second.wait_stream(first)
    assert second.end == 101.0


def test_the_context_selects_the_stream_of_events_without_one(clock):
    stream = Stream()
    stream.launch(0.5)
    event = Event()
    before = current_stream()
    with StreamContext(stream):
        assert current_stream() is stream
        event.record()
    assert event.end == 100.5
    assert current_stream() is before


def test_a_context_can_be_entered_again_inside_itself():
    outer, inner = Stream(), Stream()
    context = StreamContext(inner)
    with StreamContext(outer):
        with context, StreamContext(None), context:
            assert current_stream() is inner
        assert current_stream() is outer


def test_the_current_stream_is_per_thread():
    seen = []
    with StreamContext(Stream()) as mine:
        thread = threading.Thread(target=lambda: seen.append(current_stream()))
        thread.start()
        thread.join()
    assert seen[0] is not mine


def test_sleeping_on_the_real_clock_is_never_short_by_more_than_the_allowance():
    until = streams.now() + 0.01
    streams.sleep_until(until)
    assert streams.now() >= until - streams.WAKE_UP_S
