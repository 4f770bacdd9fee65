"""UPSTREAM_DIFF.md: a reviewer's description of every hook."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from kairos_patches.fingerprint import locate
from kairos_patches.hook import Hook, HookProcess, UpstreamDependency
from kairos_patches.manifest import UPSTREAM_VERSION

_WHEN = {
    HookProcess.LAUNCHER: "Applied in the launching process, also without `--kairos`.",
    HookProcess.HTTP: "Applied under `--kairos` in the process that serves HTTP.",
    HookProcess.SCHEDULER: "Applied under `--kairos` in every scheduler process.",
}


def review(hooks: Sequence[Hook], dependencies: Sequence[UpstreamDependency], root: Path) -> str:
    """Return the document as Markdown.

    Args:
        hooks: all hooks.
        dependencies: symbols that are used without a hook.
        root: folder of the upstream package.
    """
    lines = [
        "# Difference to upstream",
        "",
        f"Kairos runs on SGLang {UPSTREAM_VERSION} as released. No upstream file is copied or",
        f"edited: {len(hooks)} functions are hooked, and {len(dependencies)} more are relied on.",
        "This page is written by `scripts/upstream_diff.py` from the tables in `kairos_patches/`.",
    ]
    for process in HookProcess:
        lines += ["", f"## {process.value}", "", _WHEN[process]]
        for hook in hooks:
            if hook.process is process:
                lines += ["", *_section(hook, root)]
    lines += ["", "## Relied on without a hook", "", "| symbol | file | for |", "|---|---|---|"]
    for item in dependencies:
        source = locate(item.symbol, root)
        lines.append(f"| `{item.symbol}` | `{source.file}:{source.line}` | {item.why} |")
    return "\n".join([*lines, ""])


def _section(hook: Hook, root: Path) -> list[str]:
    source = locate(hook.symbol, root)
    return [
        f"### `{hook.name}`",
        "",
        f"- File: `{source.file}:{source.line}`",
        f"- Hook: {hook.kind.value}",
        *_wrapped(f"- Under `--kairos`: {hook.changes}"),
        *_wrapped(f"- Why no smaller seam: {hook.why}"),
        f"- Test: `{hook.test}`",
    ]


def _wrapped(item: str) -> list[str]:
    """Lines of a list item, at most 100 columns wide."""
    return textwrap.wrap(
        item, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
