"""pyproject.toml against the tree: a package that is not listed is missing from the wheel."""

import subprocess
import sys
import tomllib
from pathlib import Path

import kairos_patches

REPOSITORY = Path(kairos_patches.__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def test_every_package_is_listed() -> None:
    found = set()
    for root in (REPOSITORY / "python", REPOSITORY):
        folders = root.glob("*/**/") if root.name == "python" else [REPOSITORY / "kairos_patches"]
        for folder in folders:
            if (folder / "__init__.py").is_file() or any(folder.glob("*.json")):
                found.add(".".join(folder.relative_to(root).parts))
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_the_lock_holds_everything_that_the_library_imports() -> None:
    lock = (REPOSITORY / "requirements/cpu.txt").read_text().lower()
    pinned = {line.partition("==")[0].replace("_", "-") for line in lock.splitlines()}
    needed = {spec.partition(">")[0] for spec in PROJECT["project"]["dependencies"]}
    assert needed <= pinned


def test_the_gpu_extra_is_the_upstream_that_the_hooks_were_written_for() -> None:
    version = kairos_patches.UPSTREAM_VERSION
    assert PROJECT["project"]["optional-dependencies"]["gpu"] == [f"sglang=={version}"]
    assert f"sglang=={version}" in (REPOSITORY / "requirements/cpu.txt").read_text().splitlines()


def test_the_library_imports_neither_the_engine_nor_torch() -> None:
    probe = (
        "import sys, kairos.slo, kairos.latency, kairos.policy\n"
        "heavy = {'sglang', 'torch', 'matplotlib', 'scipy', 'numba'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
