"""A node's cache under several processes at once, kill -9, a limit, and files that something else wrote to."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from node_cache import Slowly, recorded

from booth.contract.attempts import StoredFile
from booth_service.errors import StorageError
from booth_service.storage import blobs
from booth_service.storage.blobs import BlobCache

MIB = 2**20
SCRIPT = Path(__file__).parents[2] / "node_cache.py"
NO_LIMIT = 2**40

# Two base models that share a VAE, and a third one.
MODELS = {
    "one": {"unet/weights": "unet-one", "vae/weights": "vae", "index.json": "index"},
    "two": {"unet/weights": "unet-two", "vae/weights": "vae"},
    "three": {"unet/weights": "unet-three"},
}
SIZES = {"unet-one": 3 * MIB + 5, "unet-two": 3 * MIB, "unet-three": 3 * MIB, "vae": MIB, "index": 0}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "source"
    folder.mkdir()
    for name, size in SIZES.items():
        (folder / name).write_bytes(random.Random(name).randbytes(size))
    for name, paths in MODELS.items():
        (folder.parent / f"{name}.json").write_text(json.dumps(paths))
    return folder


@contextmanager
def using(root: Path, source: Path, name: str, *, limit: int = NO_LIMIT, pause_s: float = 0.0) -> Iterator:
    """A process that fetches the model and then uses it until the block ends."""
    command = [sys.executable, str(SCRIPT), str(root), str(limit), str(source), name, str(pause_s)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ready(process) -> tuple[Path, int]:
    """Its folder, and how many files it fetched."""
    for line in process.stdout:
        if line.startswith("ready"):
            _, folder, fetched = line.split()
            return Path(folder), int(fetched)
    raise AssertionError("the process ended before its folder was ready")


def assert_right(folder: Path, source: Path, name: str) -> None:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == set(MODELS[name])
    for path, original in MODELS[name].items():
        assert (folder / path).read_bytes() == (source / original).read_bytes()


def assert_no_half_blob(root: Path) -> None:
    for blob in (root / "blobs").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name


def cache(root: Path, source: Path, limit: int = NO_LIMIT) -> tuple[BlobCache, Slowly]:
    fetch = Slowly(source)
    return BlobCache(root, limit, fetch), fetch


def test_models_share_the_files_that_they_have_in_common(tmp_path: Path, source: Path) -> None:
    here, fetch = cache(tmp_path, source)
    folders = {name: here.folder(name, recorded(source, MODELS[name])) for name in MODELS}
    for name, folder in folders.items():
        assert_right(folder, source, name)
    assert sorted(fetch.fetched) == sorted(SIZES)
    assert (folders["one"] / "vae/weights").samefile(folders["two"] / "vae/weights")
    assert here.folder("one", recorded(source, MODELS["one"])) == folders["one"]
    assert len(fetch.fetched) == len(SIZES)


def test_processes_that_begin_together_fetch_each_file_once(tmp_path: Path, source: Path) -> None:
    with (
        using(tmp_path, source, "one", pause_s=0.01) as first,
        using(tmp_path, source, "one", pause_s=0.01) as second,
        using(tmp_path, source, "two", pause_s=0.01) as third,
    ):
        ends = [ready(process) for process in (first, second, third)]
    assert_right(ends[0][0], source, "one")
    assert_right(ends[2][0], source, "two")
    assert sum(fetched for _, fetched in ends) == len(set(MODELS["one"].values()) | set(MODELS["two"].values()))


def test_what_a_killed_process_left_is_taken_up_and_cleared(tmp_path: Path, source: Path) -> None:
    with using(tmp_path, source, "one", pause_s=0.05) as killed:
        assert killed.stdout.readline() == "begun\n"
        with using(tmp_path, source, "one") as waiting:  # it waits for what the first one fetches
            time.sleep(0.2)
            killed.kill()
            folder, _ = ready(waiting)
            assert_right(folder, source, "one")
    assert_no_half_blob(tmp_path)
    here, _ = cache(tmp_path, source)
    here.folder("three", recorded(source, MODELS["three"]))
    assert list((tmp_path / "building").iterdir()) == []
    assert list((tmp_path / "partial").iterdir()) == []


def test_killed_at_any_moment_nothing_half_is_ever_taken(tmp_path: Path, source: Path) -> None:
    moments = random.Random(1)
    for number in range(6):
        with using(tmp_path, source, ("one", "two")[number % 2], limit=5 * MIB, pause_s=0.002) as process:
            process.stdout.readline()
            time.sleep(moments.uniform(0, 0.15))
            process.kill()
            process.wait()
        assert_no_half_blob(tmp_path)
        for folder in (tmp_path / "folders").iterdir():
            assert_right(folder, source, folder.name)
    with using(tmp_path, source, "one") as last:
        assert_right(ready(last)[0], source, "one")
    assert list((tmp_path / "partial").iterdir()) == []


def test_the_longest_unused_goes_when_the_limit_asks_for_it(tmp_path: Path, source: Path) -> None:
    limit = 8 * MIB  # one and two, with one VAE, come to 7; three is 3
    for name in ("one", "two", "one", "three"):
        with using(tmp_path, source, name, limit=limit) as process:
            ready(process)
    assert sorted(folder.name for folder in (tmp_path / "folders").iterdir()) == ["one", "three"]
    names = {blob.name for blob in (tmp_path / "blobs").iterdir()}
    kept = {name for model in ("one", "three") for name in MODELS[model].values()}
    assert names == {hashlib.sha256((source / name).read_bytes()).hexdigest() for name in kept}


def test_a_folder_that_another_process_uses_stays_over_the_limit(tmp_path: Path, source: Path) -> None:
    with using(tmp_path, source, "one", limit=MIB) as user:
        folder, _ = ready(user)
        for name in ("two", "three"):
            with using(tmp_path, source, name, limit=MIB) as other:
                ready(other)
        assert_right(folder, source, "one")
    with using(tmp_path, source, "two", limit=MIB) as other:
        ready(other)
        assert [each.name for each in (tmp_path / "folders").iterdir()] == ["two"]


@pytest.mark.parametrize("harm", ["cut", "written", "gone"])
def test_a_damaged_file_is_fetched_again(tmp_path: Path, source: Path, harm: str) -> None:
    here, fetch = cache(tmp_path, source)
    files = recorded(source, MODELS["one"])
    folder = here.folder("one", files)
    damaged = folder / "unet/weights"
    damaged.chmod(0o600)
    if harm == "cut":
        os.truncate(damaged, 100)
        os.utime(damaged, (blobs._checked_at(), blobs._checked_at()))
    elif harm == "written":
        damaged.write_bytes(bytes(SIZES["unet-one"]))
    else:
        damaged.unlink()
    fetch.fetched.clear()
    assert_right(here.folder("one", files), source, "one")
    assert fetch.fetched == ([] if harm == "gone" else ["unet-one"])
    assert_no_half_blob(tmp_path)


def test_after_a_restart_of_the_machine_nothing_is_trusted(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, fetch = cache(tmp_path / "cache", source)
    files = recorded(source, MODELS["one"])
    here.folder("one", files)
    (tmp_path / "boot").write_text("another")
    monkeypatch.setattr(blobs, "_BOOT_ID", tmp_path / "boot")
    here.folder("one", files)
    assert sorted(fetch.fetched) == sorted([*MODELS["one"].values()] * 2)


def test_without_hard_links_folders_hold_symlinks(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    here, fetch = cache(tmp_path, source, limit=MIB)
    for name in ("one", "two", "one"):
        folder = here.folder(name, recorded(source, MODELS[name]))
        assert (folder / "vae/weights").is_symlink()
        assert_right(folder, source, name)
    assert len(fetch.fetched) == 4


def test_a_fetch_that_fails_leaves_nothing(tmp_path: Path, source: Path) -> None:
    def fails(file: StoredFile, view: memoryview) -> None:
        view[:1] = b"x"
        raise StorageError("other bytes than recorded")

    files = recorded(source, MODELS["three"])
    with pytest.raises(StorageError, match="other bytes"):
        BlobCache(tmp_path, NO_LIMIT, fails).folder("three", files)
    for part in ("blobs", "partial", "building", "folders"):
        assert list((tmp_path / part).iterdir()) == []
    here, _ = cache(tmp_path, source)
    assert_right(here.folder("three", files), source, "three")


def test_a_cache_of_another_user_is_refused(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    here, _ = cache(tmp_path, source)
    with pytest.raises(StorageError, match="belongs to another user"):
        here.folder("one", recorded(source, MODELS["one"]))
