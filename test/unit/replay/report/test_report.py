"""The report: its contents, refused comparisons, and a page without dependencies."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.replay.client.record import RequestOutcome
from kairos.replay.report.model import ROWS, Extras, subtitle
from kairos.replay.report.results import ArmResult, RunResult, check_comparable
from kairos.replay.report.writer import terminal_table, write_report
from support.replay import arm, header, record

SLOW = [record(i, [0.4 + 0.2 * i, 0.45 + 0.2 * i]) for i in range(10)]
FAST = [record(i, [0.1 + 0.05 * i, 0.12 + 0.05 * i]) for i in range(10)]


class Page(HTMLParser):
    """Collects the addresses that the page would load, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two arms, one of them with hostile text, a note and a failure."""
    folder = tmp_path_factory.mktemp("report")
    lost = record(10, [], RequestOutcome.TIMEOUT)
    hostile = "<script>alert(1)</script>"
    arms = [
        arm("fcfs", [*SLOW, lost], trace=hostile),
        arm("kairos", [*FAST, record(10, slo_class="batch")], trace=hostile),
    ]
    write_report(arms, folder)
    return folder


def table(arms: list) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(terminal_table(arms))
    return console.file.getvalue()  # type: ignore[attr-defined]  # it is a StringIO


def test_table_has_both_arms_and_every_row() -> None:
    text = table([arm("fcfs", SLOW), arm("kairos", FAST)])
    assert "fcfs" in text
    assert "kairos" in text
    for row in ROWS:
        assert row.label in text
    ttft = next(line for line in text.splitlines() if "TTFT attainment " in line)
    assert "10.0 %" in ttft
    assert "90.0 %" in ttft


def test_missing_figures_are_a_dash_and_infinite_ones_never() -> None:
    text = table([arm("fcfs", [record(0, [], RequestOutcome.TIMEOUT)])])
    assert re.search(r"longest pause between tokens +│ +– ", text)
    assert re.search(r"TTFT p99 +│ +never ", text)


def test_json_has_the_contract_keys_per_arm(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    assert list(report["arms"]) == ["fcfs", "kairos"]
    assert report["arms"]["fcfs"]["requests"] == 11
    assert report["arms"]["fcfs"]["outcomes"] == {"ok": 10, "timeout": 1}
    assert report["gains_over"] == "fcfs"
    assert report["arms"]["kairos"]["e2e_attainment"] == pytest.approx(100 * 10 / 11)
    assert report["emulated"] is True
    assert report["headers"]["kairos"][0]["seed"] == 0


def test_page_loads_nothing(folder: Path) -> None:
    page = Page((folder / "report.html").read_text())
    assert "script" not in page.tags
    assert all(value.startswith("data:") for value in page.loads)
    assert "http" not in page.words
    assert "<script>alert(1)</script>" in page.words  # as text
    assert "Emulated." in page.words
    assert "timeout" in page.words
    assert "Per class" in page.words


def test_plot_is_a_png(folder: Path) -> None:
    data = (folder / "report.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 20_000


def test_runs_without_a_first_token_can_be_reported(tmp_path: Path) -> None:
    dead = [record(i, [], RequestOutcome.CONNECTION_ERROR) for i in range(3)]
    one_token = [record(0, [0.1])]
    write_report([arm("fcfs", dead), arm("kairos", one_token)], tmp_path)
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"trace_sha256": "1" * 64},
        {"load": 0.8},
        {"slo_set": "F5"},
        {"seed": 1},
        {"profile": load_profile("minimax-m2.5-tp4-h200")},
        {"cache_tokens": 1},
        {"dilate": 2.0},
        {"versions": {"sglang": "0.5.24"}},
        {"emulated": False},
        {"start_s": 5.0},
    ],
)
def test_arms_with_other_work_are_refused(change: dict[str, object]) -> None:
    arms = [arm("fcfs", SLOW), arm("kairos", FAST, **change)]
    with pytest.raises(InputError, match=next(iter(change)).removesuffix("s")):
        check_comparable(arms)
    (said,) = check_comparable(arms, force=True)
    assert "are compared although" in said


def test_report_without_arms_is_refused() -> None:
    with pytest.raises(InputError, match="at least one arm"):
        check_comparable([])


def test_subtitle_says_if_servers_were_emulated() -> None:
    assert "emulated with profile tiny-fast" in subtitle([arm("fcfs", SLOW)])
    assert "emulated" not in subtitle([arm("fcfs", SLOW, emulated=False)])
    assert "25/50/150" in subtitle([arm("fcfs", SLOW, slo_set="tiers")])


def test_arms_of_two_commits_are_refused() -> None:
    arms = [arm("fcfs", SLOW, git_commit="a"), arm("kairos", FAST, git_commit="b")]
    with pytest.raises(InputError, match="commit is a and b"):
        check_comparable(arms)
    assert len(check_comparable(arms, force=True)) == 1
    assert check_comparable([arms[0], arm("kairos", FAST)]) == []  # unknown


def test_repeats_of_an_arm_need_the_same_server_flags() -> None:
    one = arm("fcfs", SLOW, SLOW)
    runs = [
        RunResult(header(repeat=i, servers={"all": flags, "client sends to": [f"http://h:{i}"]}), r)
        for i, (flags, r) in enumerate(((["--a"], SLOW), (["--b"], SLOW)))
    ]
    assert check_comparable([one]) == []
    with pytest.raises(InputError, match="servers, all: '--a' and '--b'"):
        check_comparable([ArmResult("fcfs", tuple(runs))])
    assert len(check_comparable([ArmResult("fcfs", tuple(runs))], force=True)) == 1


def test_unlike_numbers_of_records_are_refused_even_by_force() -> None:
    with pytest.raises(InputError, match="runs of fcfs have 10 and 9 records"):
        check_comparable([arm("fcfs", SLOW, SLOW[:9])], force=True)


def test_runs_left_out_are_in_the_interference_table(tmp_path: Path) -> None:
    lost = header(repeat=2, note="decode-0 died")
    kept = ArmResult("fcfs", arm("fcfs", SLOW).runs, (lost,))
    write_report([kept], tmp_path)
    words = Page((tmp_path / "report.html").read_text()).words
    assert "fcfs, load 0.9, run 2" in words
    assert "NOT VALID, left out of all figures; decode-0 died" in words
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["left_out"]["fcfs"][0]["note"] == "decode-0 died"


def test_page_explains_slos_and_goodput(tmp_path: Path) -> None:
    loads = [{"load": 4.0, "misses_at": None}, {"load": 0.0, "misses_at": 0.05}]
    goodput = {"fcfs": {"in": "simulator", "loads": loads}}
    write_report([arm("fcfs", SLOW)], tmp_path, Extras({}, {}, goodput))
    words = Page((tmp_path / "report.html").read_text()).words
    assert "SLO set L3 means TTFT 0.5 s + 3 x own prefill, TPOT 30 ms." in words
    assert "4.00 or more" in words
    assert "below 0.05" in words
    assert re.search(r"send lag of at most\s+5 ms", words)


def test_only_gains_whose_interval_excludes_zero_are_marked(tmp_path: Path) -> None:
    """The arms differ in TTFT; no request of either misses its TPOT."""
    slow = [record(i, [0.6, 0.61], input_tokens=9 + i) for i in range(40)]
    fast = [record(i, [0.1, 0.11], input_tokens=9 + i) for i in range(40)]
    write_report([arm("fcfs", slow), arm("kairos", fast)], tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert '<td>TTFT attainment</td><td class="best">+100.0<small>' in page
    assert "<td>TPOT attainment</td><td>+0.0<small>" in page
