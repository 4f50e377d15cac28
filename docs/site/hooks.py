"""MkDocs hooks: pages keep the paths that they have in the repository, and nothing is fetched from other hosts.

A link such as ``../kernels/README.md`` works on the site as it does in the repository: the pages and files outside
``docs/`` that pages link to become part of the site.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"\]\(\s*<?([^)#>\s]+)")
_FETCHED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed|object|link)\b[^>]*?\s(?:src|srcset|href|data)\s*=\s*[\"']?"
    r"((?:https?:)?//[^\"'\s>]+)|(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s;]+)",
    re.IGNORECASE,
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The theme's files; pages of the navigation and of ``docs/``, and what they link to, by their repository paths."""
    from mkdocs.structure.files import File, Files

    docs = Path(config.docs_dir)
    others = [file for file in files if file.src_dir != config.docs_dir or file.src_uri.startswith("site/")]
    built = []
    for path in closure([*map(ROOT.joinpath, named(config.nav)), *sorted(docs.rglob("*.md"))]):
        name = path.relative_to(ROOT).as_posix()
        file = File(name, str(ROOT), config.site_dir, config.use_directory_urls)
        file.dest_uri = file.dest_uri.removeprefix("docs/")
        built.append(file)
    return Files([*others, *built])


def named(nav: Any) -> list[str]:
    """The pages that a navigation names, nested lists and titles left out."""
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in named(entry)]


def closure(pages: list[Path]) -> list[Path]:
    """``pages``, the files of the repository that they link to, and so on for each page among those."""
    found = list(dict.fromkeys(pages))
    for path in found:
        if path.suffix == ".md":
            found += [target for target in dict.fromkeys(_targets(path)) if target not in found]
    return found


def _targets(page: Path) -> Iterator[Path]:
    for link in _LINK.findall(page.read_text("utf-8")):
        target = (page.parent / link).resolve()
        if "://" not in link and target.is_file() and target.is_relative_to(ROOT):
            yield target


def fetched(text: str) -> list[str]:
    """Addresses on other hosts from which a page or style sheet loads scripts, styles, fonts or pictures."""
    return [one or other for one, other in _FETCHED.findall(text)]


def on_post_build(config: MkDocsConfig) -> None:
    """End the build if a page loads anything from another host."""
    from mkdocs.exceptions import PluginError

    site = Path(config.site_dir)
    for path in sorted(file for file in site.rglob("*") if file.suffix in (".html", ".css")):
        if addresses := fetched(path.read_text("utf-8")):
            raise PluginError(f"{path.relative_to(site)} loads {', '.join(addresses)}: keep a copy under docs/ instead")
