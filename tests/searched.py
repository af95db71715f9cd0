"""A small index to search, with texts that are hard to show; and searchers of it without Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_index import History

from actors.config import OUTPUTS, Output
from actors.encoder import Encoder, load_encoder
from pipelines.config.sections import SearchConfig
from pipelines.index import Index
from pipelines.search.searcher import Searcher, ShardCalls
from pipelines.search.shard_files import ShardRequest
from pipelines.search.shard_host import ShardHost
from pipelines.search.shards import request

SCRIPT = '<img src=x onerror="window.harmed=1"><script>window.harmed=1</script> a bridge of markup'
TEXTS = {
    "a": {
        "bridge": "The old stone bridge was built across the river in 1842.",
        "script": SCRIPT,
        "emoji": "A volcano 🌋 erupts 🌋 and 𝒎𝒂𝒕𝒉 letters stand before the word lava.",
        "long": "A river of words runs on. " * 40,
    },
    "b": {
        "cjk": "東京タワーは日本の東京都港区にある電波塔である。",
        "rtl": "الجسر القديم فوق النهر بني من الحجر.",
        "gone": "This bridge is deleted before anybody searches for it.",
        "edited": "Before: nothing of interest.",
    },
}


def searched_index(folder: Path) -> History:
    """Two generations: a document is deleted, another edited in the second."""
    history = History(folder, chunk={"by": "none", "title_prefix": True, "overlap": 0})
    for name, texts in TEXTS.items():
        history.write(name, texts)
    history.run()
    later = {key: text for key, text in TEXTS["b"].items() if key != "gone"}
    history.write("b", later | {"edited": "After: a bridge of steel."})
    history.run()
    return history


def encoder_of(history: History) -> Encoder:
    return load_encoder(history.config.encoder)


class Here(ShardCalls):
    """A shard of this process; `before` is called before each of its answers."""

    def __init__(self, asked: ShardRequest, before: Callable[[], object]) -> None:
        self._host, self._before = ShardHost(asked), before

    def start(self, method: str, *args: Any, **named: Any) -> Callable[[], Any]:
        def wait() -> Any:
            self._before()
            return getattr(self._host, method)(*args, **named)

        return wait


def searcher_of(
    index: Index,
    folder: Path,
    shards: int = 1,
    before: Callable[[], object] = lambda: None,
    outputs: tuple[Output, ...] = OUTPUTS,
    **search: Any,
) -> Searcher:
    """So many shards of an index; `search` is its configuration."""
    config = SearchConfig(folder=str(folder), **search)
    asked = [request(index, outputs, config, number, shards) for number in range(shards)]
    return Searcher([Here(each, before) for each in asked], outputs, config)
