"""Columns of the evaluation's tables."""

from typing import NamedTuple

ATTAINMENTS = ("ttft_attainment", "tpot_attainment", "e2e_attainment")


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        name: figure of the arm.
        label: head of the column.
        digits: decimals.
    """

    name: str
    label: str
    digits: int


SIMULATED_COLUMNS = (
    Column("ttft_attainment", "TTFT %", 1),
    Column("tpot_attainment", "TPOT %", 1),
    Column("e2e_attainment", "e2e %", 1),
    Column("goodput_tokens_per_s", "good tok/s", 0),
    Column("tokens_per_busy_s", "decode tok/s", 0),
    Column("longest10_ttft_attainment", "longest 10 %: TTFT %", 1),
    Column("longest10_ttft_p99_s", "longest 10 %: TTFT p99 s", 1),
)
ENGINE_COLUMNS = (
    Column("ttft_attainment", "TTFT %", 1),
    Column("tpot_attainment", "TPOT %", 1),
    Column("e2e_attainment", "e2e %", 1),
    Column("goodput_tokens_per_s", "good tok/s", 0),
    Column("longest10_ttft_attainment", "longest 10 %: TTFT %", 1),
    Column("ttft_p99_s", "TTFT p99 s", 1),
    Column("max_stall_s", "longest pause s", 1),
    Column("runs", "runs", 0),
)
ATTAINMENT_COLUMNS = (
    Column("ttft_attainment", "TTFT %", 1),
    Column("tpot_attainment", "TPOT %", 1),
    Column("tpot_attainment_engine_clock", "TPOT %, engine's clock", 1),
    Column("e2e_attainment", "e2e %", 1),
    Column("longest10_ttft_attainment", "longest 10 %: TTFT %", 1),
    Column("goodput_tokens_per_s", "good tok/s", 0),
    Column("decode_tokens_per_busy_s", "decode tok/s", 0),
    Column("runs", "runs", 0),
)
TIME_COLUMNS = (
    Column("ttft_p50_s", "TTFT p50 s", 2),
    Column("ttft_p99_s", "p99 s", 1),
    Column("longest10_ttft_p99_s", "longest 10 %: p99 s", 1),
    Column("max_ttft_over_slo", "worst / SLO", 1),
    Column("tpot_p50_ms", "TPOT p50 ms", 1),
    Column("tpot_p99_ms", "p99 ms", 1),
    Column("max_stall_s", "longest pause s", 2),
    Column("failures", "failures", 0),
    Column("effective_load", "load found", 3),
    Column("send_lag_p99_ms", "send lag p99 ms", 1),
)
