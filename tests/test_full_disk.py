"""A local disk that is full or not ours: one line, nothing half written, and going on later."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from actors.errors import StorageError
from pipelines.store import open_store
from pipelines.store.files import scratch_folder

ROOT = Path(__file__).parents[1]

# The process may write no file above so many bytes: EFBIG, which Python raises since it ignores
# SIGXFSZ. Raising the limit is freeing space.
LIMITED = """
import os, resource, sys
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
from actors.errors import StorageError
from pipelines.store.files import scratch_folder
from pipelines.store.store import open_store
root = Path(sys.argv[1])
store = open_store(str(root / "index"))
data = os.urandom(200_000)
(root / "local").write_bytes(data)
store.overwrite("d/before", b"kept")
(root / "tmp").mkdir()
def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
def in_scratch():
    with scratch_folder() as folder:
        pq.write_table(pa.table({"x": [data]}), folder / "part", compression="none")
        store.upload(folder / "part", "d/a")
for act in (
    lambda: store.create_exclusive("d/a", data),
    lambda: store.overwrite("d/a", data),
    lambda: store.upload(root / "local", "d/a"),
    in_scratch,
):
    limit(100_000)
    try:
        act()
    except StorageError as error:
        print(error.message, "|", error.remedy)
    print(sorted(os.listdir(root / "index/d")), store.list("d"), os.listdir(root / "tmp"))
    limit(resource.RLIM_INFINITY)
    act()
    print(data in store.read("d/a"), store.read("d/before").decode())
    store.delete("d/a")
"""


def run(script, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_write_to_a_full_disk_says_so_leaves_nothing_and_succeeds_later(tmp_path):
    lines = run(LIMITED, tmp_path, TMPDIR=str(tmp_path / "tmp"))
    assert len(lines) == 4 * 3
    for said, names, later in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        message, remedy = said.split(" | ")
        assert "no space left" in message
        assert "run the same command again: finished slices are kept" in remedy
        assert ("TMPDIR" in remedy) == ("index/d/a" not in message)
        assert str(tmp_path) in message
        assert (names, later) == ("['before'] ['d/before'] []", "True kept")
    assert "TMPDIR" in lines[-3]


def test_scratch_folder_passes_other_errors_on():
    with pytest.raises(FileNotFoundError), scratch_folder() as folder:
        (folder / "nothing").read_bytes()
    with pytest.raises(ZeroDivisionError), scratch_folder():
        _ = 1 / 0
    assert not folder.exists()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False, timeout=20)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip("this process may not mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=20)


def test_write_to_a_full_tmpfs_says_so_leaves_nothing_and_succeeds_later(small_disk, monkeypatch):
    store = open_store(str(small_disk / "index"))
    for write in (store.create_exclusive, store.overwrite):
        store.overwrite("d/ballast", b"x" * 700_000)
        with pytest.raises(StorageError, match="no space left") as caught:
            write("d/a", b"x" * 600_000)
        assert "finished slices are kept" in caught.value.remedy
        assert [p.name for p in (small_disk / "index/d").iterdir()] == ["ballast"]
        store.delete("d/ballast")
        write("d/a", b"x" * 600_000)
        assert len(store.read("d/a")) == 600_000
        store.delete("d/a")
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    with pytest.raises(StorageError, match=f"{small_disk}.*no space left"), scratch_folder() as f:
        (f / "part").write_bytes(b"x" * 2_000_000)
    assert [path.name for path in small_disk.iterdir()] == ["index"]


# Root may write anywhere: the process becomes someone else.
FOREIGN = """
import os, sys
from pathlib import Path
from actors.errors import StorageError
from pipelines.store.store import open_store
store = open_store(sys.argv[1] + "/index")
store.overwrite("d/before", b"kept")
os.chmod(sys.argv[1] + "/index/d", 0o555)
if os.geteuid() == 0:
    os.seteuid(65534)
for act in (store.create_exclusive, store.overwrite):
    try:
        act("d/a", b"mine")
    except StorageError as error:
        print(error.message, "|", error.remedy)
print(os.listdir(sys.argv[1] + "/index/d"))
if os.getuid() == 0:
    os.seteuid(0)
os.chmod(sys.argv[1] + "/index/d", 0o755)
print(store.create_exclusive("d/a", b"mine"))
"""


def test_write_without_permission_says_so_and_succeeds_once_it_is_given():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are nobody else's to enter
        Path(folder).chmod(0o755)
        *lines, names, later = run(FOREIGN, folder)
    assert len(lines) == 2
    for line in lines:
        assert f"{folder}/index/d/a: expected a usable location, found access denied" in line
        assert "permissions" in line
    assert (names, later) == ("['before']", "True")
