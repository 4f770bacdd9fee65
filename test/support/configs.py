"""Configurations that several test modules share, so that each starts once."""

from dataclasses import replace

from support.clusters import EMULATED_PAIR

OFF = EMULATED_PAIR
# Predictions from the profile that the emulation follows.
KAIROS = replace(
    EMULATED_PAIR,
    kairos=True,
    args=(
        *("--kairos-slo-class", "interactive=500,25", "batch=20000,150"),
        *("--kairos-profile", "tiny-fast"),
        *("--kairos-telemetry", "tcp://127.0.0.1:0"),
    ),
)
# Decode memory for a prompt or two, and first tokens held back.
KAIROS_TIGHT = replace(KAIROS, decode_args=("--kairos-hold", "--max-total-tokens", "30000"))
