"""Takes the screenshots of the documentation: search page, run report, evaluation report.

    make screenshots

Needs Chromium and the index of `make quickstart`. Evaluates it with known-item queries (a sentence
of an article must find that article), starts the endpoint, and writes docs/assets/*.png in both
themes and two widths.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from playwright.sync_api import Browser, sync_playwright

from pipelines.index import open_index

ROOT = Path(__file__).parent.parent
ASSETS = ROOT / "docs/assets"
WORK = ROOT / "out/screenshots"
INDEX = "out/quickstart"
PORT = 8137
WIDTHS = {"wide": (1200, 900), "narrow": (400, 860)}
QUERY = "how do volcanoes erupt"
READY_SECONDS = 180
_HIDE_ROOT = """root => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    walker.currentNode.nodeValue = walker.currentNode.nodeValue.replaceAll(root, "~/packvec");
  }
}"""


def main() -> None:
    """Write all screenshots."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if not chromium or not (ROOT / INDEX).exists():
        raise SystemExit("expected Chromium on the PATH, and the index of `make quickstart`")
    WORK.mkdir(parents=True, exist_ok=True)
    evaluation = evaluate()
    generation = open_index(str(ROOT / INDEX)).info.generation
    report = ROOT / INDEX / f"generations/{generation:06}/report.html"
    with sync_playwright() as playwright, endpoint() as url:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        take(browser, "search", f"{url}/?q={QUERY.replace(' ', '+')}", wait="#hits .text")
        take(browser, "report", report.as_uri())
        take(browser, "evaluation", evaluation.as_uri())
        browser.close()


def evaluate() -> Path:
    """The HTML report of an evaluation with forty known-item queries."""
    rows = open_index(str(ROOT / INDEX)).to_table(["doc_id", "passage_no", "text"]).to_pylist()
    long = [row for row in rows if row["passage_no"] == 0 and row["text"].count(". ") >= 4]
    queries, judgements = list[str](), ["query-id\tcorpus-id\tscore"]
    for number, row in enumerate(long[:: max(1, len(long) // 40)][:40]):
        text = row["text"].split(". ")[3]
        queries.append(json.dumps({"_id": f"q{number}", "text": text}))
        judgements.append(f"q{number}\t{row['doc_id']}\t1")
    (WORK / "queries.jsonl").write_text("\n".join(queries))
    (WORK / "qrels.tsv").write_text("\n".join(judgements))
    config = yaml.safe_load((ROOT / "conf/quickstart.yaml").read_text())
    config["evaluate"] = {
        "queries": str(WORK / "queries.jsonl"),
        "qrels": str(WORK / "qrels.tsv"),
        "out": str(WORK / "evaluation"),
    }
    (WORK / "evaluate.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "pipelines.evaluate_index", str(WORK / "evaluate.yaml")]
    subprocess.run(command, cwd=ROOT, check=True)
    return WORK / "evaluation/eval.html"


@contextmanager
def endpoint() -> Iterator[str]:
    """The URL of an endpoint that searches the index, on Ray Serve."""
    config = yaml.safe_load((ROOT / "conf/serve.yaml").read_text())
    config["http_options"]["port"] = PORT
    config["applications"][0]["args"] = {"index": {"uri": str(ROOT / INDEX)}, "search": {}}
    (WORK / "serve.yaml").write_text(yaml.safe_dump(config))
    serve = Path(sys.executable).with_name("serve")
    process = subprocess.Popen([serve, "run", str(WORK / "serve.yaml")], cwd=ROOT)
    url = f"http://127.0.0.1:{PORT}"
    try:
        wait_until_ready(url, process)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return when a search is answered."""
    body = json.dumps({"query": QUERY, "top": 1}).encode()
    request = urllib.request.Request(f"{url}/search", body, {"Content-Type": "application/json"})
    for _ in range(READY_SECONDS):
        if process.poll() is not None:
            raise SystemExit("the endpoint ended before it was ready")
        try:
            with urllib.request.urlopen(request, timeout=30):
                return
        except OSError:
            time.sleep(1)
    raise SystemExit(f"the endpoint did not answer within {READY_SECONDS} s")


def take(browser: Browser, name: str, url: str, wait: str | None = None) -> None:
    """Write <name>-<theme>-<width>.png for both themes and widths."""
    for theme in ("light", "dark"):
        for width, (x, y) in WIDTHS.items():
            page = browser.new_page(
                viewport={"width": x, "height": y},
                color_scheme="dark" if theme == "dark" else "light",
            )
            page.goto(url, wait_until="networkidle")
            if wait:
                page.wait_for_selector(wait, timeout=30_000)
            # The reader's checkout is elsewhere.
            page.evaluate(_HIDE_ROOT, str(ROOT))
            page.screenshot(path=ASSETS / f"{name}-{theme}-{width}.png")
            page.close()


if __name__ == "__main__":
    main()
