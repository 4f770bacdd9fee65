"""The OpenAPI description of the router's endpoints."""

from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from kairos import __version__


@cache
def document() -> dict[str, Any]:
    """Return `openapi.yaml` with the version of this installation."""
    text = files(__package__).joinpath("openapi.yaml").read_text(encoding="utf-8")
    described: dict[str, Any] = yaml.safe_load(text)
    described["info"]["version"] = __version__
    return described
