"""Configurations that several test modules share; each starts once."""

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from support.clusters import EMULATED_PAIR, Config

SUPPORT = Path(__file__).parent

# Trace of the emulated devices of `OFF`.
TRACE = Path(tempfile.gettempdir()) / f"kairos-emulation-{os.getpid()}.jsonl"
OFF = replace(EMULATED_PAIR, env=(("KAIROS_EMULATION_TRACE", str(TRACE)),))
# What requests of tests get that name no SLO.
DEFAULT_SLO = ("--kairos-ttft-slo-ms", "2000", "--kairos-tpot-slo-ms", "50")
# Kairos predicts with the profile that the emulation follows.
KAIROS = replace(
    EMULATED_PAIR,
    kairos=True,
    args=(
        *DEFAULT_SLO,
        *("--kairos-slo-class", "interactive=500,25", "batch=20000,150"),
        *("--kairos-profile", "tiny-fast"),
        *("--kairos-telemetry", "tcp://127.0.0.1:0"),
    ),
)
# Requests that name no SLO are best effort.
BEST_EFFORT = replace(OFF, kairos=True)
# Decode memory for a prompt or two, and first tokens held back.
KAIROS_TIGHT = replace(KAIROS, decode_args=("--kairos-hold", "--max-total-tokens", "30000"))
# Real weights; about half of the requests, chosen at random, are skipped in every decode step.
RANDOM_SELECTION = Config(
    platform="cpu",
    kairos=True,
    args=(*DEFAULT_SLO, "--chunked-prefill-size", "256"),
    decode_args=("--kairos-profile", str(SUPPORT / "slow_decode.json")),
    env=(("PYTHONPATH", str(SUPPORT / "random_selection")), ("KAIROS_TEST_RANDOM_SELECTION", "1")),
)
