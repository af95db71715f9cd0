"""What MkDocs cannot do by configuration: pages from outside docs/, and Mermaid without a CDN."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
MERMAID = "https://registry.npmjs.org/mermaid/-/mermaid-11.12.0.tgz"
MERMAID_SHA512 = (
    "ZudVx73BwrMJfCFmSSJT84y6u5brEoV8DOItdHomNLz32uBjNrelm7mg95X7g+C6UoQH/W6mBLGDEDv73JdxBg=="
)
CACHE = ROOT / "out/.site-cache"


def on_files(files: Any, config: Any) -> Any:
    """Add the project's own pages and the Mermaid script."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    files.append(File.generated(config, "assets/mermaid.min.js", content=_mermaid()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links that work on GitHub at the pages of the site; drop those to other files."""
    for source, page in PAGES.items():
        markdown = markdown.replace(f"](../{source}", f"]({page}").replace(
            f"]({source}", f"]({page}"
        )
    markdown = re.sub(r"\]\(docs/", "](", markdown)
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", markdown)


def _mermaid() -> bytes:
    """The script of the pinned release, from the npm registry; kept under out/."""
    kept = CACHE / MERMAID.rpartition("/")[2]
    if not kept.exists():
        with urllib.request.urlopen(MERMAID, timeout=60) as answer:
            archive = answer.read()
        found = base64.b64encode(hashlib.sha512(archive).digest()).decode()
        if found != MERMAID_SHA512:
            raise SystemExit(f"{MERMAID}: expected sha512-{MERMAID_SHA512}, found sha512-{found}")
        CACHE.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(archive)
    with tarfile.open(fileobj=io.BytesIO(kept.read_bytes())) as archive_files:
        script = archive_files.extractfile("package/dist/mermaid.min.js")
        assert script is not None
        return script.read()
