"""The configuration of a simulation."""

import pytest

from kairos.errors import InputError
from kairos.sim.config import SimConfig


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"instances": "0P1D"}, "instances: '0P1D' is not allowed; it must look like 1P1D"),
        ({"instances": "P"}, "instances: 'P' is not allowed"),
        ({"prefill_policy": "best"}, "prefill policy: 'best' is not one of urgency, fcfs"),
        ({"decode_policy": "best"}, "decode policy: 'best' is not one of continuous"),
        ({"noise": float("nan")}, "noise: nan is out of range, allowed are 0 to 1"),
        ({"decode_bias": 0.0}, "decode bias: 0.0 is out of range, allowed are 0.1 to 10"),
        ({"stages": "none"}, "stages: 'none' is not one of both, prefill, decode"),
        ({"grants": "size"}, "grants: 'size' is not one of arrival, deadline"),
        ({"admission": True, "instances": "2P1D"}, "it needs one prefill instance"),
        ({"preallocate": True, "stages": "decode"}, "preallocate: with stages 'decode'"),
        ({"admission": True, "stages": "decode"}, "stages 'both' or 'prefill'"),
    ],
)
def test_impossible_values_are_rejected(bad, message):
    with pytest.raises(InputError) as rejected:
        SimConfig(**bad)
    assert message in str(rejected.value)


@pytest.mark.parametrize(
    ("grants", "prefill_policy", "in_order"),
    [
        ("", "urgency", False),
        ("", "fcfs", True),
        ("arrival", "urgency", True),
        ("deadline", "fcfs", False),
    ],
)
def test_memory_is_granted_by_deadline_under_urgency(grants, prefill_policy, in_order):
    assert SimConfig(prefill_policy, grants=grants).grants_in_order is in_order
