"""Hooks of the documents' build: generated reference, folders in the navigation, repository files.

A page may link to any file of the repository. Files outside docs/ are put into the site under
`repository/`, so that a link holds on the site, in an editor and on a code host.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

import make_reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = "repository/"
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_WHOLE_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)\)")
_CODE = re.compile(r"(```.*?```|`[^`\n]+`)", re.DOTALL)
_GENERATED = re.compile(r"<!-- generated: (\w+) -->")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of a folder in the place of the folder's name."""
    config.nav = _expanded(config.nav, Path(config.docs_dir))
    config.watch += [str(ROOT / "python/kairos"), str(ROOT / "scripts")]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that the navigation or a page names."""
    waiting = [name.removeprefix(OUTSIDE) for name in _names(config.nav) if OUTSIDE in name]
    for file in files.documentation_pages():
        text = Path(str(file.abs_src_path)).read_text(encoding="utf-8")
        waiting += _outside(text, f"docs/{file.src_uri}")
    added: set[str] = set()
    while waiting:
        name = waiting.pop()
        path = ROOT / name
        if name in added or not path.is_file():  # mkdocs warns of a link to nothing
            continue
        added.add(name)
        if name.endswith(".md"):
            text = path.read_text(encoding="utf-8")
            file = File.generated(
                config, OUTSIDE + name, content=text, inclusion=InclusionLevel.NOT_IN_NAV
            )
            files.append(file)
            waiting += _outside(text, name)
        else:
            files.append(File.generated(config, OUTSIDE + name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Fill in generated tables and point links at where files are on the site."""
    markdown = _GENERATED.sub(lambda match: make_reference.SECTIONS[match[1]](), markdown)
    source = _source(page.file.src_uri)

    def on_site(match: re.Match[str]) -> str:
        target = _resolved(match[2], source)
        if target is None:
            return match[0]
        site = target.removeprefix("docs/") if _inside(target) else OUTSIDE + target
        relative = posixpath.relpath(site, posixpath.dirname(page.file.src_uri) or ".")
        return f"{match[1]}{relative}{match[3]}"

    def without_folder(match: re.Match[str]) -> str:
        target = _resolved(match[2], source)
        return match[1] if target is not None and (ROOT / target).is_dir() else match[0]

    markdown = _WHOLE_LINK.sub(without_folder, markdown)  # the site has no page of a folder
    return "".join(
        part if index % 2 else _LINK.sub(on_site, part)
        for index, part in enumerate(_CODE.split(markdown))
    )


def _expanded(nav: Any, docs: Path) -> Any:
    """`nav` with every `folder/` replaced by its pages."""
    if isinstance(nav, list):
        return [_expanded(item, docs) for item in nav]
    if isinstance(nav, dict):
        return {title: _expanded(value, docs) for title, value in nav.items()}
    if not nav.endswith("/"):
        return nav
    pages = [path.relative_to(docs).as_posix() for path in (docs / nav).rglob("*.md")]
    pages = [name for name in pages if not name.endswith("/template.md")]
    return sorted(pages, key=lambda name: (not name.endswith("/index.md"), name))


def _names(nav: Any) -> list[str]:
    """All pages of a navigation."""
    if isinstance(nav, str):
        return [nav]
    values = nav.values() if isinstance(nav, dict) else nav or []
    return [name for value in values for name in _names(value)]


def _source(page: str) -> str:
    """Path in the repository of a page of the site."""
    return page.removeprefix(OUTSIDE) if page.startswith(OUTSIDE) else f"docs/{page}"


def _resolved(link: str, source: str) -> str | None:
    """Path in the repository that a relative link in `source` leads to; None for other links."""
    if re.match(r"[a-z][a-z0-9+.-]*:|/", link):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _inside(target: str) -> bool:
    return target.startswith("docs/")


def _outside(text: str, source: str) -> list[str]:
    """Files outside docs/ that the text of `source` links to."""
    prose = _CODE.sub("", text)
    targets = [_resolved(match[2], source) for match in _LINK.finditer(prose)]
    return [target for target in targets if target is not None and not _inside(target)]
