"""Order of events."""

import math

from kairos.sim.event_queue import EventQueue


def test_events_leave_by_time_and_then_by_insertion():
    events: EventQueue[str] = EventQueue()
    for time_s, name in ((2.0, "late"), (1.0, "first"), (1.0, "second")):
        events.add(time_s, name)
    assert events.next_s == 1.0
    assert events.next_event == "first"
    left = []
    while events:
        left.append(events.pop())
    assert left == [(1.0, "first"), (1.0, "second"), (2.0, "late")]


def test_empty_queue_has_no_next_event():
    events: EventQueue[str] = EventQueue()
    assert not events
    assert events.next_s == math.inf
    assert events.next_event is None
