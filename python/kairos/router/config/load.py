"""YAML and TOML files of settings: read whole, or refused with what is wrong and where."""

import tomllib
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from kairos.errors import InputError
from kairos.validation import shown


class _Loader(yaml.SafeLoader):
    """Refuses a key that comes twice: the first one would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable) or key in seen:
                problem = f"found {shown(key)} a second time"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_text(path: Path, where: str) -> str:
    """Return the text of a file.

    Raises:
        InputError: `where`, the path and what is wrong with it.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        problem = "there is no such file; give the path of one"
    except OSError as error:
        problem = f"it cannot be read ({error.strerror}); give a file that this user may read"
    except UnicodeDecodeError as error:
        problem = f"it is not UTF-8 (byte {error.start}); save it as UTF-8"
    raise InputError(f"{where}: {path}: {problem}")


def read_document(path: Path, where: str) -> dict[str, Any]:
    """The mapping in a file; TOML if its name ends so, else YAML (and thereby JSON).

    Raises:
        InputError: unreadable, malformed, or something else than a mapping.
    """
    text = read_text(path, where)
    try:
        if path.suffix == ".toml":
            return tomllib.loads(text)
        document = yaml.load(text, _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark, error.problem or error.context or "not YAML"
        at = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise InputError(f"{where}: {path}: {at}{problem}; correct it there") from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{where}: {path}: {' '.join(str(error).split())}") from None
    if document is None:
        return {}
    return mapping(document, f"{where}: {path}")


def mapping(value: object, where: str) -> dict[str, Any]:
    """`value` if it is a mapping with text keys.

    Raises:
        InputError: it is not.
    """
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InputError(f"{where}: {shown(value)} is not a mapping of names to values")
    return value


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse names that mean nothing.

    Raises:
        InputError: the first of `given` that is not in `known`.
    """
    known = list(known)
    for name in given:
        if name not in known:
            raise InputError(f"{where}: unknown field {shown(name)}; known are {', '.join(known)}")
