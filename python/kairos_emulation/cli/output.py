"""The folder that commands write to unless a flag names another."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def output_folder(package: Path = _PACKAGE) -> Path:
    """Return `out/` of the checkout that holds the code, else `out/` of the current directory.

    Args:
        package: directory of `kairos_emulation`.
    """
    checkout = package.parents[1]
    if (checkout / "scripts" / "setup.sh").is_file():
        return checkout / "out"
    return Path.cwd() / "out"
