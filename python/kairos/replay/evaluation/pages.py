"""Write tables and plots of the records into the pages of the evaluation."""

import re
import textwrap
from pathlib import Path

from kairos.errors import InputError
from kairos.replay.evaluation.plots import PLOTS
from kairos.replay.evaluation.records import Records
from kairos.replay.evaluation.tables import table

_MARKED = re.compile(r"(<!-- table: (.*?) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_UNIT = re.compile(r"(\d) (?=(?:%|ms|s)\b|%)")
_BEGIN, _END = "<!-- table:", "<!-- end of table -->"


def rendered(docs: Path) -> dict[Path, bytes]:
    """Pages and plots as the records have them.

    Args:
        docs: folder that holds `records` and `evaluation`.

    Returns:
        Content by path: every page that has a table, and every plot.

    Raises:
        InputError: a record does not decode, or a page asks for a table that does not exist.
    """
    records = Records(docs / "records")
    found: dict[Path, bytes] = {}
    for page in sorted((docs / "evaluation").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if _BEGIN in text:
            found[page] = _with_tables(page, text, records).encode()
    for name, plot in PLOTS.items():
        found[docs / "evaluation" / "plots" / name] = plot(records)
    return found


def stale(docs: Path) -> list[Path]:
    """Pages and plots whose content differs from that of the records."""
    return [
        path
        for path, content in rendered(docs).items()
        if not path.is_file() or path.read_bytes() != content
    ]


def render(docs: Path) -> list[Path]:
    """Write every page and plot, and return their paths."""
    found = rendered(docs)
    for path, content in found.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return list(found)


def _with_tables(page: Path, text: str, records: Records) -> str:
    """`text` with every table between its two comments."""
    if text.count(_BEGIN) != text.count(_END):
        raise InputError(f"{page}: a table lacks its comment {_END}; add it behind the table")

    def fill(found: re.Match[str]) -> str:
        try:
            content = table(records, found[2])
        except InputError as error:
            raise InputError(f"{page}: {error}") from error
        return f"{found[1]}\n{_wrapped(content)}\n\n{found[3]}"

    return _MARKED.sub(fill, text)


def _wrapped(text: str) -> str:
    """`text` with paragraphs broken at 100 columns; rows of tables stay on one line."""
    lines = [line if line.startswith(("|", "#")) else _filled(line) for line in text.split("\n")]
    return "\n".join(lines)


def _filled(paragraph: str) -> str:
    """`paragraph` broken at 100 columns, but never between a number and its unit."""
    joined = _UNIT.sub("\\1\u00a0", paragraph)
    filled = textwrap.fill(joined, 100, break_long_words=False, break_on_hyphens=False)
    return filled.replace("\u00a0", " ")
