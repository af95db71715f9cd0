"""Re-indexing on a cluster: what the index has lies in shared memory, in one piece or in many."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import config_for

from pipelines.embed_corpus import embed_corpus
from pipelines.index import Index, open_index
from pipelines.index.generations import read_chain
from pipelines.plan.inventory import Numbering, inventory
from pipelines.plan.mentions import gather
from pipelines.reindex import reindex
from pipelines.run import on_ray as known_on_ray
from pipelines.run.on_ray import buckets_for, put_known


def test_buckets_are_so_many_that_none_is_too_large():
    cases = {0: 1, 1: 1, 10_000_000: 1, 10_000_001: 2, 30_000_000: 4, 1_000_000_000: 128}
    assert {documents: buckets_for(documents) for documents in cases} == cases


@pytest.mark.usefixtures("ray_cluster")
def test_reindex_on_a_cluster_and_s3_encodes_what_changed(
    s3_bucket, tmp_path, articles, monkeypatch
):
    monkeypatch.setattr(known_on_ray, "BUCKET_DOCUMENTS", 16)
    monkeypatch.setattr(known_on_ray, "_FILES_IN_TASK", 2)
    bucket, options = s3_bucket
    docs = tmp_path / "docs"
    docs.mkdir()
    rows = articles.slice(0, 44).to_pylist()

    def write(name, some):
        pq.write_table(pa.Table.from_pylist(some, articles.schema), docs / f"{name}.parquet")

    write("a", rows[:20])
    write("b", rows[20:40])
    index = {"uri": f"{bucket}/index", "storage_options": options}
    config = config_for(docs, index=index, outputs=["dense"], ray={"engine": "ray"})
    embed_corpus(config)
    before = open_index(index["uri"], options)
    rows[25]["text"] += " One sentence more."
    write("b", [*rows[40:44], *rows[21:40]])
    counts = reindex(config).counts
    assert (counts.documents, counts.unchanged, counts.deleted, counts.edited) == (5, 38, 1, 1)
    after = open_index(index["uri"], options)
    new, old = (
        set(zip(*t.to_table(["doc_id", "passage_hash"]).to_pydict().values(), strict=True))
        for t in (after, before)
    )
    assert counts.encoded == len(new - old) < counts.passages
    chain = read_chain(after.store, 2)
    numbering = Numbering(inventory(after.store, chain[0]))
    whole = gather(Index(after.store, chain), numbering.of_run)
    refs = put_known(Index(after.store, chain), numbering.of_run)
    assert len(refs.buckets) == 4
    parts = refs.get().buckets
    arrays = [array for part in parts for array in vars(part).values() if len(array)]
    assert not any(array.flags.owndata or array.flags.writeable for array in arrays)  # in place
    assert np.concatenate([part.ids for part in parts]).tolist() == whole.ids.tolist()
    for name in ("checks", "hash_a", "hash_b", "part", "first_row", "n_rows", "unit"):
        together = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(together, getattr(whole, name))
    assert (whole.unit >= 0).all()
