"""Checks of servers that run already, before a request is sent to them."""

import os
import socket
from http.client import HTTPException
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import orjson

from kairos.errors import InputError
from kairos.replay.client.target import UrlTarget

KEY_VARIABLE = "OPENAI_API_KEY"


def check_reachable(url: str) -> None:
    """Check that a server listens at `url`.

    Raises:
        InputError: not a URL, a URL with a user name, or no server answers.
    """
    UrlTarget(url)
    parts = urlsplit(url)
    if parts.username is not None:
        raise InputError(
            f"--url: a user name in it would be written to every record; set {KEY_VARIABLE} instead"
        )
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except OSError as error:
        raise InputError(f"--url: no server answers at {url}: {error}") from error


def first_model(url: str) -> str:
    """Return the first model that an OpenAI endpoint lists.

    Raises:
        InputError: it lists none.
    """
    headers = {}
    if key := os.environ.get(KEY_VARIABLE):
        headers["Authorization"] = f"Bearer {key}"
    address = f"{url.rstrip('/')}/v1/models"
    try:
        with urlopen(Request(address, headers=headers), timeout=10) as answer:
            return str(orjson.loads(answer.read())["data"][0]["id"])
    except (OSError, HTTPException, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"--url: {address} names no model ({error}); give --model, or --api sglang"
        ) from error
