"""What MkDocs cannot do by configuration: pages from outside docs/, and scripts without a CDN."""

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
SCRIPTS = {  # asset: (package, file in it, sha512 of the package)
    "assets/mermaid.min.js": (
        "mermaid/-/mermaid-11.12.0.tgz",
        "package/dist/mermaid.min.js",
        "ZudVx73BwrMJfCFmSSJT84y6u5brEoV8DOItdHomNLz32uBjNrelm7mg95X7g+C6UoQH/W6mBLGDEDv73JdxBg==",
    ),
    "assets/iframe-worker.js": (
        "iframe-worker/-/iframe-worker-1.0.4.tgz",
        "package/shim/index.js",
        "roeaaI+Lg1LJNfgpCjoRe/+WzEjy9+Z08LoEvu85MCPbBjwm+qXz8Ag5U05lHa6V1CysZyGzE0SOkAtSUA5q7Q==",
    ),
}
REGISTRY = "https://registry.npmjs.org/"
CACHE = ROOT / "out/.site-cache"


def on_files(files: Any, config: Any) -> Any:
    """Add the project's own pages and the Mermaid script."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for asset, (package, path, sha512) in SCRIPTS.items():
        files.append(File.generated(config, asset, content=_script(package, path, sha512)))
    return files


def on_post_page(output: str, **_: Any) -> str:
    """Load the worker of the offline search from this site, not from a CDN."""
    return output.replace("https://unpkg.com/iframe-worker/shim", "assets/iframe-worker.js")


def on_post_template(output_content: str, **_: Any) -> str:
    """Do the same for pages of the theme, such as 404.html."""
    return on_post_page(output_content)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links that work on GitHub at the pages of the site; drop those to other files."""
    for source, page in PAGES.items():
        markdown = markdown.replace(f"](../{source}", f"]({page}").replace(
            f"]({source}", f"]({page}"
        )
    markdown = re.sub(r"\]\(docs/", "](", markdown)
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", markdown)


def _script(package: str, path: str, sha512: str) -> bytes:
    """A file of a pinned package of the npm registry; the package is kept under out/."""
    kept = CACHE / package.rpartition("/")[2]
    if not kept.exists():
        with urllib.request.urlopen(REGISTRY + package, timeout=60) as answer:
            archive = answer.read()
        found = base64.b64encode(hashlib.sha512(archive).digest()).decode()
        if found != sha512:
            raise SystemExit(f"{package}: expected sha512-{sha512}, found sha512-{found}")
        CACHE.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(archive)
    with tarfile.open(fileobj=io.BytesIO(kept.read_bytes())) as files:
        script = files.extractfile(path)
        assert script is not None
        return script.read()
