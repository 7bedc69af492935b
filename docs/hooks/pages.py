"""Pages of the site that no file in docs/ holds: the references, and the Markdown files of the repository's root.

The command line's reference is read from the command line itself, the config's from the config models. Links between
docs/ and the root are written for the repository, as a reader of the source sees them; here they are pointed at pages.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

from references import cli_reference, config_reference  # noqa: E402

ROOT_PAGES = {
    "BENCHMARKS.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security-policy.md",
}
_ROOT_NAMES = {page: name for name, page in ROOT_PAGES.items()}
_REMOTE = re.compile(
    r"<(?:script|img|iframe|source)[^>]+src=[\"']?https?://|<link[^>]+stylesheet[^>]+https?://"
)
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")


def on_files(files, config):
    """Add the generated pages."""
    pages = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in ROOT_PAGES.items()}
    pages |= {"reference/cli.md": cli_reference(), "reference/config.md": config_reference()}
    for page, content in pages.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown, *, page, **_):
    """Point links between docs/ and the repository's root at the site's pages."""
    source = page.file.src_uri
    folder = posixpath.dirname(_ROOT_NAMES.get(source, f"docs/{source}"))

    def site_link(match: re.Match[str]) -> str:
        target = match[2]
        if ":" in target or target.startswith("/"):
            return match[0]
        in_repository = posixpath.normpath(posixpath.join(folder, target))
        in_site = ROOT_PAGES.get(in_repository, in_repository.removeprefix("docs/"))
        return f"{match[1]}{posixpath.relpath(in_site, posixpath.dirname(source) or '.')}{match[3]}"

    return _LINK.sub(site_link, markdown)


def on_post_page(output, *, page, **_):
    """Refuse a page that loads anything from another host."""
    if remote := _REMOTE.search(output):
        raise PluginError(f"{page.file.src_uri} loads from another host: {remote[0]}")
    return output
