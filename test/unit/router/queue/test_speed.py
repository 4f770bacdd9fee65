"""What the router learns of the speed of its instances."""

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kairos.router.placement.prefill_target import PrefillTarget
from kairos.router.placement.speed import MIN_PERIODS, Speed
from support.dispatching import PROFILE


@pytest.mark.parametrize("trusted", [True, False])
def test_factor_and_handover_are_found(trusted):
    speed = Speed(trusted)
    draw = random.Random(1)
    for _ in range(600):
        work = draw.uniform(0.02, 0.8)
        speed.observe(True, work, 0.2 + 1.7 * work)
    assert speed.factor == pytest.approx(1.7, rel=0.1)
    assert speed.handover_s == pytest.approx(0.2, abs=0.05)


def test_nothing_is_known_without_a_profile_before_some_periods():
    speed = Speed(False)
    for at in range(MIN_PERIODS):
        assert not speed.known
        speed.observe(True, 0.1, 4.0)
        assert speed.periods == at + 1
    assert speed.known
    assert speed.factor > 10.0


@given(st.lists(st.tuples(st.booleans(), st.floats(), st.floats()), max_size=50))
@example([(False, 1.7e308, 1.0), (False, 1.7e308, 1.0), (False, 1.7e308, 1.7e308)])
def test_values_stay_within_bounds(samples):
    speed = Speed(True)
    for sample in samples:
        speed.observe(*sample)
    assert 0.1 <= speed.factor <= 10.0
    assert 0.0 <= speed.handover_s <= 1.0


def test_a_hang_is_not_taken_for_the_speed():
    speed = Speed(True)
    for _ in range(50):
        speed.observe(True, 1.0, 1.05)
    speed.observe(True, 1.0, 600.0)
    assert speed.factor < 1.5


@pytest.mark.parametrize("true_factor", [0.6, 1.0, 1.8])
def test_long_prompts_that_are_overtaken_do_not_distort_the_speed(true_factor):
    """Short prompts overtake long ones; an instance taken for faster than it is draws all work."""
    instance = PrefillTarget("p", PROFILE, True, None)
    draw = random.Random(2)
    now, next_id, held = 0.0, 0, {}
    for _ in range(400):
        # Two long prompts at a time, and many short ones that go first.
        while sum(work > 1.0 for work in held.values()) < 2:
            held[next_id] = 2.0 + draw.random()
            instance.send(next_id, now + 20.0, held[next_id], 50_000, now)
            next_id += 1
        for _ in range(3):
            short = 0.02 + 0.1 * draw.random()
            instance.send(next_id, now + 1.0, short, 2_000, now)
            now += true_factor * short
            instance.done(next_id, now)
            next_id += 1
        id = min(held)
        part = min(held[id], 0.5)
        now += true_factor * part
        held[id] -= part
        if held[id] <= 0.0:
            instance.done(id, now)
            del held[id]
        if not draw.randrange(8):  # now and then it catches up
            for id in list(held):
                now += true_factor * held.pop(id)
                instance.done(id, now)
            now += 0.5
    assert instance.speed.factor == pytest.approx(true_factor, rel=0.25)
