"""Configurations that several test modules share, so that each starts once."""

from dataclasses import replace

from support.clusters import EMULATED_PAIR

OFF = EMULATED_PAIR
KAIROS = replace(
    EMULATED_PAIR,
    kairos=True,
    args=("--kairos-slo-class", "interactive=500,25", "batch=20000,150"),
)
