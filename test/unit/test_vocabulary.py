"""One word, one meaning: what docs/glossary.md defines is what the code says."""

import ast
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import kairos_patches

REPOSITORY = Path(kairos_patches.__file__).parent.parent
GLOSSARY = REPOSITORY / "docs/glossary.md"
DISTRIBUTION = ("python/kairos", "python/sglang", "kairos_patches", "python/kairos_emulation")
CODE = (*DISTRIBUTION, "scripts", "test")

# Words of an identifier (snake_case or CamelCase, lower case) that have a standard name now.
RETIRED = {
    "asking": "PreallocationRequest",
    "coin": "random_selection",
    "elder": "aged",
    "elders": "aged",
    "hopeless": "infeasible",
    "lone": "single_request, base_latency",
    "nobody": "the request, prompt or step that is meant",
    "owed": "reserved_for",
    "owe": "reserve_for",
    "park": "skip (decode), preempt (prefill)",
    "parked": "skipped (decode), preempted (prefill)",
    "parking": "skipping (decode), preempting (prefill)",
    "parks": "skips (decode), preemptions (prefill)",
    "parting": "SplitBatch",
    "reliance": "UpstreamDependency",
    "stands": "all_run_for",
    "tau": "tpot_s",
    "victim": "infeasible",
    "victims": "infeasible",
}
# Whole identifiers whose words are fine elsewhere.
RETIRED_NAMES = {
    "at_ease": "selection_skipped",
    "given_up": "infeasible, deferred",
    "give_up": "min_pace_ratio",
    "Door": "AdmissionController",
    "Leg": "Endpoint",
    "Quiet": "InterferenceReport",
    "Room": "DecodeMemory (policy), KvBudget (engine)",
    "Rooms": "DecodeReservations",
    "Setting": "RunConfig",
    "Settings": "SimConfig",
    "Verdict": "AdmissionDecision",
    "Watch": "InterferenceMonitor",
}


def python_files(roots: tuple[str, ...]) -> Iterator[Path]:
    for root in roots:
        for path in sorted((REPOSITORY / root).rglob("*.py")):
            if path != Path(__file__):
                yield path


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names that this code defines, with their lines."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, line
        elif isinstance(node, ast.arg):
            yield node.arg, line
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield (node.id if isinstance(node, ast.Name) else node.attr), line


def words(name: str) -> list[str]:
    """Words of a snake_case or CamelCase name, lower case."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def retired(name: str) -> str | None:
    """What to say instead of `name`; None when it is fine."""
    if name.lstrip("_") in RETIRED_NAMES:
        return RETIRED_NAMES[name.lstrip("_")]
    if re.match(r"_?MOST_", name):
        return "MAX_..."
    return next((RETIRED[word] for word in words(name) if word in RETIRED), None)


def test_no_identifier_is_a_retired_word() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{line}: {name}: say {instead}"
        for path in python_files(CODE)
        for name, line in identifiers(ast.parse(path.read_text(encoding="utf-8")))
        if (instead := retired(name)) is not None
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", ["elder_s", "_owe", "MOST_BYTES", "ParkedRequest", "_Room"])
def test_retired_words_are_found_inside_names(name: str) -> None:
    assert retired(name) is not None


@pytest.mark.parametrize("name", ["bootstrap_room", "almost", "sparkle", "at_least", "HEADROOM"])
def test_other_words_are_left_alone(name: str) -> None:
    assert retired(name) is None


def test_no_two_public_classes_share_a_name() -> None:
    where: dict[str, list[str]] = defaultdict(list)
    for path in python_files(DISTRIBUTION):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where[node.name].append(str(path.relative_to(REPOSITORY)))
    shared = {name: paths for name, paths in where.items() if len(paths) > 1}
    assert not shared


def glossary_terms() -> list[str]:
    """Terms of the definition list: a line, followed by one that begins with a colon."""
    lines = GLOSSARY.read_text(encoding="utf-8").splitlines()
    return [
        term.strip().strip("*`")
        for line, following in itertools.pairwise(lines)
        if line and not line.startswith(":") and re.match(r":\s", following)
        for term in line.split(",")
    ]


def spoken() -> str:
    """All documents but the glossary, and all code, with names taken apart into words."""
    documents = [path for path in (REPOSITORY / "docs").rglob("*.md") if path != GLOSSARY]
    documents.append(REPOSITORY / "README.md")
    texts = [path.read_text(encoding="utf-8") for path in (*documents, *python_files(DISTRIBUTION))]
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", "\n".join(texts))
    return re.sub(r"[\s-]+", " ", apart).lower()


def test_every_term_of_the_glossary_is_used() -> None:
    text = spoken()
    unused = [term for term in glossary_terms() if re.sub(r"[\s-]+", " ", term).lower() not in text]
    assert not unused


def test_the_glossary_defines_a_term_once() -> None:
    terms = [term.lower() for term in glossary_terms()]
    assert len(terms) > 30
    assert len(terms) == len(set(terms))


def test_terms_that_explanations_introduce_are_defined() -> None:
    """An explanation sets a domain term in italics where it introduces it."""
    defined = {term.lower() for term in glossary_terms()}
    missing = set()
    for path in (REPOSITORY / "docs/explanation").glob("*.md"):
        prose = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for term in re.findall(r"(?<![*\w])\*([A-Za-z][\w /-]{1,40})\*(?!\*)", prose):
            if term.lower() not in defined and term.lower().removesuffix("s") not in defined:
                missing.add(f"{path.name}: {term}")
    assert not missing
