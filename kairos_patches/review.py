"""UPSTREAM_DIFF.md: what a reviewer of upstream needs to know about every hook."""

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
    """The document as Markdown, for the upstream package in `root`."""
    lines = [
        "# Difference to upstream",
        "",
        f"Kairos runs on SGLang {UPSTREAM_VERSION} as released. No upstream file is copied or "
        f"edited; {len(hooks)} functions are hooked, and {len(dependencies)} more are relied on. "
        "Written by `scripts/upstream_diff.py`; edit the table in `kairos_patches/` instead.",
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
        f"### `{hook.symbol}`",
        "",
        f"- File: `{source.file}:{source.line}`",
        f"- Hook: {hook.kind.value}",
        f"- Under `--kairos`: {hook.changes}",
        f"- Why no smaller seam: {hook.why}",
        f"- Test: `{hook.test}`",
    ]
