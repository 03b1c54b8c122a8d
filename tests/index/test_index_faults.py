"""Bad input, damaged objects, kills and writers at once: a clear error, and nothing half done."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnnbatch
from cnnbatch.errors import EnvironmentFault, OutputHeld, UserError
from cnnbatch.index import building, local_copy
from cnnbatch.index.compact import compact_index
from cnnbatch.index.held_out import is_held_out
from cnnbatch.index.manifest import commit, read_manifest
from cnnbatch.index.run import TRIES
from cnnbatch.storage import Storage
from tests.embedded import QUIET, build, of_pictures, people, picture, space, write_pictures
from tests.index.test_index_build import answers, manifest, opened, segment_files
from tests.outputs import write_job, write_part
from tests.servers import Bucket

pytest_plugins = ("tests.s3",)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "out", people(600))


def test_an_embedder_other_than_the_indexs_is_refused_by_its_hash(out: Path, tmp_path: Path) -> None:
    build(out, tmp_path / "index")
    other = tmp_path / "other"
    write_job(other)
    schema = of_pictures(space(weights="f" * 64))
    write_part(other, 0, [picture("x.jpg", people(1)[0])], schema=schema)
    with pytest.raises(UserError, match=r"resnet18 \(ffffffff.*can't be compared.*\(00000000"):
        build([out, other], tmp_path / "index")
    shutil.copy(
        other / "predictions" / "part-00000000.parquet", out / "predictions" / "part-00000099.parquet"
    )
    with pytest.raises(UserError, match=r"part-00000099.parquet has embeddings of resnet18 \(ffff"):
        build(out, tmp_path / "index")
    assert len(opened(tmp_path / "index")) == 600


def test_an_output_without_embeddings_is_refused(tmp_path: Path) -> None:
    from tests.outputs import good, write_output

    write_output(tmp_path / "out", [[good("a.jpg", "a.jpg", [("cat", 0.5)])]])
    with pytest.raises(
        UserError, match=r"has no embeddings; it has the columns key.*\n.*task.embedding=true"
    ):
        build(tmp_path / "out", tmp_path / "index")
    with pytest.raises(UserError, match="expected an output of a job"):
        build(tmp_path / "nothing", tmp_path / "index")
    assert not (tmp_path / "index" / "manifest.json").exists()


def test_the_output_of_another_job_is_no_place_for_an_index(out: Path) -> None:
    with pytest.raises(UserError, match="holds what another job has made"):
        build(out, out)


def test_what_is_no_vector_is_left_out_and_counted(tmp_path: Path) -> None:
    vectors, out = people(12), tmp_path / "out"
    vectors[3], vectors[7, 2], vectors[8, 0] = 0, np.nan, np.inf
    vectors[9] *= 1e30  # as long as it likes
    write_pictures(out, vectors)
    assert build(out, tmp_path / "index").images == 9
    assert manifest(tmp_path / "index").left_out() == {
        "embeddings with a number that is not finite": 2,
        "embeddings of length zero": 1,
    }
    assert opened(tmp_path / "index").search(vectors[9], 1)["key"].to_pylist() == ["p000009.jpg"]


@pytest.mark.parametrize(
    ("queries", "words"),
    [
        (np.ones(5), r"expected vectors of 16 numbers.*shape \(1, 5\)"),
        (np.ones((2, 3, 16)), "shape"),
        (np.zeros(16), "query 0: expected a vector of finite numbers, not all of them zero"),
        ([[1.0] * 16, [float("nan")] * 16], "query 1: expected"),
        ([["a"] * 16], "expected vectors, an array"),
    ],
)
def test_queries_that_are_no_vectors_are_refused(out: Path, tmp_path: Path, queries: Any, words: str) -> None:
    build(out, tmp_path / "index")
    with pytest.raises(UserError, match=words):
        opened(tmp_path / "index").search(queries)


def test_no_queries_and_more_results_than_there_are(out: Path, tmp_path: Path) -> None:
    build(out, tmp_path / "index")
    index = opened(tmp_path / "index")
    assert index.search(np.empty((0, 16))).num_rows == 0
    assert index.search(people(1), 700).num_rows == 600
    with pytest.raises(UserError, match="expected 1 to 10,000 results, got 0"):
        index.search(people(1), 0)


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_a_segment_that_is_not_whole_is_named_and_the_rest_searched_when_asked(
    out: Path, tmp_path: Path, harm: str
) -> None:
    place = tmp_path / "index"
    build(out, place, index={"exact_below": 1000})
    victim = place / "segments" / f"{manifest(place).segments[1].name}.parquet"
    data = victim.read_bytes()
    if harm == "missing":
        victim.unlink()
    else:
        victim.write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
    with pytest.raises(UserError, match=rf"{victim.name} is {harm}.*\n.*skip_damaged"):
        opened(place).search(people(1))
    index = opened(place)
    found = index.search(people(1), 1000, skip_damaged=True)
    assert found.num_rows == 600 - 64
    assert [victim.name in one for one in index.damaged()] == [True]
    victim.write_bytes(data)
    assert opened(place).search(people(1), 1000).num_rows == 600


def test_a_cache_that_is_full_is_the_environments_fault(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(out, tmp_path / "index", index={"exact_below": 1000})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(local_copy, "_write_at", full)
        with pytest.raises(EnvironmentFault, match="No space left.*\n.*CNNBATCH_CACHE at a larger disk"):
            opened(tmp_path / "index").search(people(1))
    assert opened(tmp_path / "index").search(people(1), 3).num_rows == 3


def test_the_local_copy_is_extended_and_never_mixed(out: Path, tmp_path: Path) -> None:
    cache = Path(os.environ["CNNBATCH_CACHE"])
    place = tmp_path / "index"
    build(out, place)
    first = opened(place)
    before = first.search(people(5), 10)
    (vectors,) = cache.rglob("vectors")
    write_pictures(tmp_path / "more", people(50, seed=3), name="m")
    build(tmp_path / "more", place)
    assert first.search(people(5), 10) == before
    assert first.refresh()
    assert not first.refresh()
    assert first.search(people(50, seed=3)[:1], 1)["key"].to_pylist() == ["m000000.jpg"]
    assert [*cache.rglob("vectors")] == [vectors]
    with vectors.open("ab") as file:
        file.write(b"left by a process that was killed")
    write_pictures(tmp_path / "third", people(50, seed=6), name="t")
    build(tmp_path / "third", place)
    assert opened(place).search(people(50, seed=6)[:1], 1)["key"].to_pylist() == ["t000000.jpg"]


def test_an_index_that_was_compacted_since_it_was_opened_is_read_as_it_is_now(
    out: Path, tmp_path: Path
) -> None:
    place = tmp_path / "index"
    build(out, place)
    write_pictures(tmp_path / "more", people(10, seed=3), name="m")
    build(tmp_path / "more", place)
    early = opened(place)
    [*compact_index(str(place))]
    assert early.search(people(600)[:1], 1)["key"].to_pylist() == ["p000000.jpg"]


def test_a_copy_that_lost_its_power_is_made_anew(out: Path, tmp_path: Path) -> None:
    place = tmp_path / "index"
    build(out, place)
    before = opened(place).search(people(3), 5)
    for path in Path(os.environ["CNNBATCH_CACHE"]).rglob("*.arrow"):
        path.write_bytes(bytes(path.stat().st_size))
    assert opened(place).search(people(3), 5) == before
    for path in Path(os.environ["CNNBATCH_CACHE"]).rglob("vectors"):
        path.write_bytes(b"")
    assert opened(place).search(people(3), 5) == before


def test_so_few_different_vectors_that_recall_cannot_be_measured_are_refused(tmp_path: Path) -> None:
    vectors = people(400)
    vectors = vectors[~is_held_out(vectors.astype(np.float16))][:300]
    write_pictures(tmp_path / "out", np.tile(vectors, (2, 1)))
    with pytest.raises(UserError, match="so few are different.*\n.*exact_below=1200"):
        build(tmp_path / "out", tmp_path / "index")
    build(tmp_path / "out", tmp_path / "index", index={"exact_below": 1200})
    found = opened(tmp_path / "index").search(vectors[7], 2)["id"].to_pylist()
    assert found == ["p000007.jpg", "p000307.jpg"]  # equally near, by their names


class Killed(BaseException):
    """What a test ends a build with."""


class KilledStorage(Storage):
    """Ends with the given number of writes of objects; the last may be done or not."""

    left = 10**9
    after = False

    def create(self, uri: str, data: bytes | Path) -> str:
        """Write, unless it is the end."""
        return str(self._counted(uri, lambda: super(KilledStorage, self).create(uri, data)))

    def _counted(self, uri: str, write: Any) -> Any:
        if uri.endswith("lock"):
            return write()
        type(self).left -= 1
        if type(self).left < 0 and not type(self).after:
            raise Killed
        done = write()
        if type(self).left < 0:
            raise Killed
        return done


@pytest.mark.parametrize("after", [False, True])
def test_a_build_that_is_killed_anywhere_continues_to_the_same_index(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    build(out, tmp_path / "whole")
    expected, state = segment_files(tmp_path / "whole"), manifest(tmp_path / "whole")
    monkeypatch.setattr(building, "Storage", KilledStorage)
    KilledStorage.after = after
    place, kills = tmp_path / "index", 0
    for writes in range(100):
        KilledStorage.left = 2  # of which the codebook, which is there, takes one
        try:
            build(out, place)
            break
        except Killed:
            kills += 1
            assert writes < 50
    assert kills > 4
    assert segment_files(place) == expected
    same = {"build_seconds": 0.0, "outputs": (), "state": 0}
    assert manifest(place).model_copy(update=same) == state.model_copy(update=same)
    assert answers(place, people(5, seed=4)) == answers(tmp_path / "whole", people(5, seed=4))


def test_an_append_that_is_killed_anywhere_leaves_the_index_as_it_was_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "out", people(700)[:300])
    for name in ("whole", "index"):
        build(tmp_path / "out", tmp_path / name)
    write_pictures(tmp_path / "out", people(700))  # All parts anew, and more than are searched exactly.
    build(tmp_path / "out", tmp_path / "whole")
    before, place, kills = answers(tmp_path / "index", people(5, seed=4)), tmp_path / "index", 0
    monkeypatch.setattr(building, "Storage", KilledStorage)
    KilledStorage.after = True
    while True:
        KilledStorage.left = 6 + kills
        try:
            build(tmp_path / "out", place)
            break
        except Killed:
            kills += 1
            assert answers(place, people(5, seed=4)) == before
    assert kills > 2
    assert manifest(place).segments == manifest(tmp_path / "whole").segments
    assert manifest(place).codebook == manifest(tmp_path / "whole").codebook is not None


def test_a_compaction_that_is_killed_leaves_a_whole_index(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "index"
    build(out, place)
    write_pictures(tmp_path / "more", people(10, seed=3), name="m")
    build(tmp_path / "more", place)
    before = answers(place, people(5, seed=4))
    objects = len(segment_files(place))

    def killed(storage: Storage, uri: str) -> None:
        if uri.endswith(".parquet"):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "delete", killed)
        with pytest.raises(Killed):
            [*compact_index(str(place))]
    assert len(segment_files(place)) > objects
    (place / "_job" / "lock").unlink(missing_ok=True)
    assert answers(place, people(5, seed=4)) == before
    assert [*compact_index(str(place))][1] == "0 rows removed, 2 objects deleted"
    assert len(segment_files(place)) == len(manifest(place).segments)
    assert answers(place, people(5, seed=4)) == before


def test_a_second_writer_starts_again_from_the_new_state(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "index"
    write_pictures(tmp_path / "more", people(50, seed=3), name="m")
    meddled = [0]

    def late(index: str, storage: Storage, state: Any, etag: str | None) -> Any:
        if not meddled[0]:
            meddled[0] = 1
            build(tmp_path / "more", tmp_path / "other")
            shutil.copytree(tmp_path / "other", place, dirs_exist_ok=True)
        return commit(index, storage, state, etag)

    monkeypatch.setattr(building, "commit", late)
    assert build(out, place).total == 650
    queries = np.concatenate([people(50, seed=3)[:1], people(600)[:1]])
    keys = opened(place).search(queries, 1)["key"].to_pylist()
    assert keys == ["m000000.jpg", "p000000.jpg"]


def test_a_writer_that_is_late_each_time_gives_up(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "commit", lambda *_: None)
    with pytest.raises(OutputHeld, match=f"changed .* {TRIES} times meanwhile"):
        build(out, tmp_path / "index")


def test_a_recall_that_is_not_reached_fails_the_build_and_leaves_the_index(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "MOST_REFINE", 1)
    monkeypatch.setattr(building, "Manifest", _refining_once)
    with pytest.raises(UserError, match=r"expected recall@10 of at least 0.999, got 0\.\d+ with 1 times"):
        build(out, tmp_path / "index", index={"recall": 0.999})
    assert read_manifest(str(tmp_path / "index"), Storage()) is None


def _refining_once(**fields: Any) -> Any:
    from cnnbatch.index.manifest import Manifest

    return Manifest(**fields, refine=1)


def test_kept_columns_stay_as_they_were(out: Path, tmp_path: Path) -> None:
    place = tmp_path / "index"
    with pytest.raises(UserError, match=r"has no column 'contry'.*\n.*did you mean country"):
        build(out, place, index={"keep": ["contry"]})
    with pytest.raises(UserError, match="every row has the column 'key' anyway"):
        build(out, place, index={"keep": ["key"]})
    build(out, place)
    with pytest.raises(UserError, match="the index keeps country, year, which can't be changed"):
        build(out, place, index={"keep": ["year"]})


def test_what_is_no_index_is_refused(out: Path, tmp_path: Path) -> None:
    assert not hasattr(cnnbatch.open(out), "search")
    with pytest.raises(UserError, match="expected an output"):
        cnnbatch.open(tmp_path / "nothing")


def test_an_index_lives_in_a_bucket(out: Path, bucket: Bucket) -> None:
    place = f"{bucket.url}/index"
    section = {"url": place, "storage": bucket.options.model_dump()}
    build(out, place, output=section)
    found = cnnbatch.open(place, bucket.options.model_dump())
    assert found.search(people(600)[:1], 1)["key"].to_pylist() == ["p000000.jpg"]
    state, etag = read_manifest(place, Storage(bucket.options)) or pytest.fail("no manifest")
    assert commit(place, Storage(bucket.options), state, etag) is not None
    assert commit(place, Storage(bucket.options), state, etag) is None


@pytest.fixture(autouse=True)
def unlimited() -> Iterator[None]:
    yield
    KilledStorage.left = 10**9


def test_one_writer_at_a_time(out: Path, tmp_path: Path) -> None:
    from cnnbatch.output import lock

    with (
        lock.hold(Storage(), str(tmp_path / "index" / "_job" / "lock"), "another"),
        pytest.raises(OutputHeld, match="another run holds this output"),
    ):
        build(out, tmp_path / "index")
    assert QUIET.quiet
