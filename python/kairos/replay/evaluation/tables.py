"""The tables that pages of the evaluation ask for, by name."""

import re
from collections.abc import Callable

from kairos.errors import InputError
from kairos.replay.evaluation.columns import ATTAINMENTS, ENGINE_COLUMNS
from kairos.replay.evaluation.details import (
    COMMITS,
    MAIN_LOAD,
    engine_details,
    simulated_details,
)
from kairos.replay.evaluation.markdown import (
    MISSING,
    arm_table,
    class_table,
    engine_gain_table,
    load_table,
    markdown,
    simulated_arm_table,
)
from kairos.replay.evaluation.records import EngineLoad, EngineRecord, Records, SimulatedRecord
from kairos.replay.evaluation.series import SWEEP, fidelity, sweep


def table(records: Records, request: str) -> str:
    """The Markdown that a page asks for.

    Args:
        records: all that are kept.
        request: name of the table and its arguments, such as "engine 3-decode 0.1457".

    Raises:
        InputError: there is no such table, record or load.
    """
    name, *arguments = request.split()
    if name not in _TABLES:
        raise InputError(f"table {name!r} is unknown, allowed are {', '.join(_TABLES)}")
    make, fewest, most = _TABLES[name]
    if not fewest <= len(arguments) <= most:
        raise InputError(f"table {request!r}: {name} takes {fewest} to {most} arguments")
    return make(records, *arguments)


def _engine(records: Records, name: str, load: str = "") -> str:
    record = records.engine_record(name)
    found = record.at(load)
    upstream_first = dict(sorted(found.arms.items(), key=lambda item: item[0].startswith("kairos")))
    return f"{_caption(record, found, load)}\n\n{arm_table(upstream_first, ENGINE_COLUMNS, True)}"


def _classes(records: Records, name: str) -> str:
    record = records.engine_record(name)
    note = "By class, TTFT / TPOT / e2e %."
    return f"{_caption(record, record, '')} {note}\n\n{class_table(record.arms)}"


def _gains(records: Records, name: str, load: str = "") -> str:
    record = records.engine_record(name)
    found = record.at(load)
    rows = engine_gain_table(found, load or found.first_load())
    return f"**{record.kind.capitalize()}.** Gains in record {name}.\n\n{rows}"


def _sweep(records: Records) -> str:
    loads = [load for load, _ in SWEEP]
    rows = [["", *loads]]
    for arm, own in sweep(records).items():
        cells = (f"{own[load].e2e_attainment:.1f}" if load in own else MISSING for load in loads)
        rows.append([arm, *cells])
    caption = (
        "**Emulated.** e2e attainment, %, by prefill load. Mooncake conversation, SLO set L3, TPOT "
        "30 ms, 1P1D, five minutes."
    )
    return f"{caption}\n\n{markdown(rows)}"


def _simulated(records: Records, name: str) -> str:
    record = records.simulated_record(name)
    rows = simulated_arm_table(record.loads[MAIN_LOAD])
    return f"{_simulated_caption(record)} Load {MAIN_LOAD}.\n\n{rows}"


def _simulated_loads(records: Records, name: str) -> str:
    record = records.simulated_record(name)
    caption = f"{_simulated_caption(record)} e2e attainment, %, by load of the busier stage."
    return f"{caption}\n\n{load_table(record.loads)}"


def _goodput(records: Records) -> str:
    arms = list(dict.fromkeys(arm for one in records.simulated.values() for arm in one.goodput))
    rows = [["", *arms]]
    for record in records.simulated.values():
        rows.append([record.label, *(f"{record.goodput[arm]:.2f}" for arm in arms)])
    caption = (
        "**Simulated.** Largest load of the busier stage at which 90 % of the requests meet both "
        "SLOs, within 5 %."
    )
    return f"{caption}\n\n{markdown(rows)}"


def _fidelity(records: Records) -> str:
    rows = [["record", "load", "arm", "TTFT", "TPOT", "e2e"]]
    for name, load, arm, points, _ in fidelity(records):
        rows.append([name, load, arm, *(f"{points[figure]:+.1f}" for figure in ATTAINMENTS)])
    return f"**Simulated minus emulated**, points.\n\n{markdown(rows, text_columns=3)}"


def _all_engine(records: Records) -> str:
    return "\n".join(engine_details(name, one) for name, one in records.engine.items()).rstrip()


def _all_simulated(records: Records) -> str:
    return "\n".join(simulated_details(one) for one in records.simulated.values()).rstrip()


_TABLES: dict[str, tuple[Callable[..., str], int, int]] = {  # with fewest and most arguments
    "engine": (_engine, 1, 2),
    "classes": (_classes, 1, 1),
    "gains": (_gains, 1, 2),
    "sweep": (_sweep, 0, 0),
    "simulated": (_simulated, 1, 1),
    "simulated-loads": (_simulated_loads, 1, 1),
    "goodput": (_goodput, 0, 0),
    "fidelity": (_fidelity, 0, 0),
    "all-engine": (_all_engine, 0, 0),
    "all-simulated": (_all_simulated, 0, 0),
}


def _caption(record: EngineRecord, found: EngineLoad, load: str) -> str:
    """Instrument and work of a table in one paragraph."""
    workload = record.workload.replace("emulated with profile", "profile")
    workload = re.sub(r"SLO (\S+) \+ TPOT", r"SLO set \1, TPOT", workload)
    if load:
        offered = found.offered_work()
        span = f"{offered.requests} requests in {offered.span_s:.0f} s, load {load}"
        workload = re.sub(r"\d+ requests in \d+ s, load [\d.]+", span, workload)
    commits = f" {COMMITS}" if record.differences else ""
    return f"**{record.kind.capitalize()}.** {workload}.{commits}"


def _simulated_caption(record: SimulatedRecord) -> str:
    return (
        f"**Simulated.** {record.label}, first {record.requests:,} requests, SLO set "
        f"{record.slo_set}, TPOT {record.tpot_ms:g} ms, 1P1D."
    )
