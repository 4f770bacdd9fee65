"""The report page in a real browser: no console error, no network request."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kairos.replay.report.model import Extras
from kairos.replay.report.writer import write_report
from kairos.replay.run.interference import InterferenceReport
from support.replay import arm, record

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine"),
]
# What pages themselves write; the browser's own complaints about the machine are something else.
CONSOLE = re.compile(r":CONSOLE[:(]")


def browse(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    return subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--enable-logging=stderr", "--v=0", "--window-size=1280,2400"),
            *(f"--user-data-dir={page.parent / 'profile'}", *flags, page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "HOME": str(page.parent)},
        check=True,
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    fast = [record(i, [0.1 + 0.05 * i, 0.12 + 0.05 * i], input_tokens=9 + i) for i in range(20)]
    slow = [record(i, [0.4 + 0.2 * i, 0.45 + 0.2 * i], input_tokens=9 + i) for i in range(20)]
    loads = [{"load": 4.0, "misses_at": None}, {"load": 0.2, "misses_at": 0.21}]
    goodput = {"fcfs": {"in": "simulator", "loads": loads}}
    loud = InterferenceReport(problems=("lag of emulated devices 9.10 %, allowed are 5",) * 3)
    arms = [arm("fcfs", slow), arm("kairos", fast, interference=loud), arm("fcfs", fast, load=0.5)]
    write_report(arms, folder, Extras({}, {}, goodput))
    return folder / "report.html"


def test_page_logs_nothing_and_loads_nothing(page: Path) -> None:
    done = browse(page, "--dump-dom")
    assert "<h1>SLO attainment: fcfs, kairos</h1>" in done.stdout
    assert [line for line in done.stderr.splitlines() if CONSOLE.search(line)] == []
    assert "http://" not in done.stdout
    assert "https://" not in done.stdout


def test_check_detects_console_errors(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<script>console.error('oops')</script><img src='missing.png'>")
    done = browse(bad, "--dump-dom")
    assert [line for line in done.stderr.splitlines() if CONSOLE.search(line)]


def test_page_can_be_printed(page: Path) -> None:
    pdf = page.with_suffix(".pdf")
    browse(page, f"--print-to-pdf={pdf}", "--no-pdf-header-footer")
    assert pdf.read_bytes().startswith(b"%PDF")


def test_no_table_is_wider_than_the_page(page: Path) -> None:
    probe = page.with_name("probe.html")
    script = """<script>for (const box of document.querySelectorAll(".scroll, body"))
        if (box.scrollWidth > box.clientWidth) console.error(box.innerText)</script>"""
    probe.write_text(page.read_text() + script)
    done = browse(probe, "--dump-dom")
    assert [line for line in done.stderr.splitlines() if CONSOLE.search(line)] == []
