"""Provenance of a run: commit, versions and machine."""

import hashlib
import platform
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import psutil

_CODE = ("python", "kairos_patches", "scripts")  # folders whose new files count as changes


def git_commit() -> str:
    """Return the commit of this file's checkout, with a hash of the changes since.

    The commit is empty outside of a checkout.
    """
    try:
        root = Path(_git(Path(__file__).parent, "rev-parse", "--show-toplevel").decode().strip())
        commit = _git(root, "rev-parse", "HEAD").decode().strip()
        diff = _git(root, "diff", "HEAD")
        untracked = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", *_CODE)
        for name in untracked.decode().split("\0")[:-1]:
            diff += name.encode() + (root / name).read_bytes()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{commit}+{hashlib.sha256(diff).hexdigest()[:8]}" if diff else commit


def _git(folder: Path, *args: str) -> bytes:
    command = ["git", "-C", str(folder), *args]
    return subprocess.run(command, capture_output=True, check=True).stdout


def machine() -> str:
    """Return cores, memory, architecture and system of this machine."""
    memory = psutil.virtual_memory().total / 2**30
    return f"{psutil.cpu_count()} cores, {memory:.0f} GiB, {platform.machine()}, {sys.platform}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect a run."""
    found = {"python": platform.python_version()}
    for package in ("kairos-sglang", "sglang", "numpy", "uvloop"):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
