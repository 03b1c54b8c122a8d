"""Only what is new: later listings add, replace and mark, and leave all other parts as they are."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cnnbatch
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.output.folder import Output
from cnnbatch.sources.files.source import Files
from cnnbatch.storage import Entry, Storage
from tests.inference.test_run import QUIET, job, parts, table
from tests.servers import Bucket

pytest_plugins = ("tests.s3",)

Photos = Callable[[int], Path]
running = importlib.import_module("cnnbatch.inference.run")
NEW = RunOptions(new=True, quiet=True)
PRUNE = RunOptions(prune=True, quiet=True)


def keys(out: Path) -> list[str]:
    return [row["key"] for row in table(out).to_pylist()]


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.jpg"))


def add(folder: Path, name: str, like: Path) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    shutil.copy(like, path)
    return path


def change(path: Path, like: Path) -> None:
    """Put another picture in the place of one, as a camera or an editor does."""
    path.write_bytes(like.read_bytes())
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def rows(out: Path, *names: str) -> list[tuple[Any, ...]]:
    """Return columns; numbers to four digits, since a batch of another size rounds otherwise."""
    return [tuple(_rounded(row[name]) for name in names) for row in table(out).to_pylist()]


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value


def whole(out: Path) -> dict[str, dict[str, Any]]:
    """Return every row by its key."""
    return {
        row["key"]: {name: _rounded(value) for name, value in row.items()} for row in table(out).to_pylist()
    }


def test_new_images_become_parts_of_their_own(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(25), tmp_path / "out"
    run(job(folder, out), QUIET)
    before, like = parts(out), files(folder)[5]
    add(folder, "album-0/00000-b.jpg", files(folder)[3])
    add(folder, "new/a.jpg", like)
    assert run(job(folder, out), QUIET).images == 0
    summary = run(job(folder, out), NEW)
    assert (summary.images, summary.total, summary.exit_status) == (2, 27, 0)
    assert {name: data for name, data in parts(out).items() if name in before} == before
    assert keys(out)[25:] == ["album-0/00000-b.jpg", "new/a.jpg"]
    values = dict(zip(keys(out), rows(out, "values"), strict=True))
    assert values["new/a.jpg"] == values[str(like.relative_to(folder))]
    assert run(job(folder, out), NEW).images == 0


def test_a_changed_image_gets_a_new_row_in_its_place(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(25), tmp_path / "out"
    run(job(folder, out), QUIET)
    before, parts_before = rows(out, "key", "values"), parts(out)
    change(files(folder)[12], files(folder)[0])
    summary = run(job(folder, out), NEW)
    assert (summary.images, summary.total) == (1, 25)
    after = rows(out, "key", "values")
    assert [place for place in range(25) if after[place] != before[place]] == [12]
    assert after[12] == (before[12][0], before[0][1])
    changed = [name for name, data in parts(out).items() if data != parts_before[name]]
    assert changed == ["part-00000001.parquet"]
    fresh = tmp_path / "fresh"
    run(job(folder, fresh), QUIET)
    assert whole(fresh) == whole(out)
    assert run(job(folder, out), NEW).images == 0
    assert run(job(folder, out), QUIET).images == 0


def test_a_vanished_image_keeps_its_row_and_pruning_marks_it(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(25), tmp_path / "out"
    run(job(folder, out), QUIET)
    before = rows(out, "key", "values")
    gone = files(folder)[7]
    data = gone.read_bytes()
    gone.unlink()
    assert run(job(folder, out), NEW).images == 0
    assert rows(out, "key", "values") == before
    assert not any(mark for (mark,) in rows(out, "vanished"))
    assert run(job(folder, out), PRUNE).images == 0
    assert rows(out, "key", "values") == before
    assert [place for place, (mark,) in enumerate(rows(out, "vanished")) if mark] == [7]
    marked = parts(out)
    assert run(job(folder, out), PRUNE).images == 0
    assert parts(out) == marked
    gone.write_bytes(data)
    assert run(job(folder, out), NEW).images == 1  # Written anew, so its etag is another one.
    assert not any(mark for (mark,) in rows(out, "vanished"))
    assert rows(out, "key", "values") == before


def test_failures_of_a_passing_kind_are_tried_again_and_others_are_not(
    photos: Photos, tmp_path: Path
) -> None:
    folder, out = photos(12), tmp_path / "out"
    names = [str(path) for path in files(folder)]
    (folder / "list.txt").write_text("\n".join([*names, str(folder / "late.jpg")]))
    Path(names[2]).write_bytes(b"no picture")
    chosen = job(folder / "list.txt", out, max_failed=1.0)
    assert run(chosen, QUIET).failed == {"undecodable": 1, "not_found": 1}
    shutil.copy(names[0], folder / "late.jpg")
    summary = run(chosen, NEW)
    assert (summary.images, dict(summary.failed)) == (1, {})
    errors = [error and error["code"] for (error,) in rows(out, "error")]
    assert errors == [None, None, "undecodable", *[None] * 10]
    assert run(chosen, NEW).images == 0


def test_where_nothing_changed_no_worker_is_started(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = photos(12), tmp_path / "out"
    run(job(folder, out), QUIET)

    def started(*_: Any) -> Iterator[Any]:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(running, "predict_inline", started)
    assert run(job(folder, out), NEW).exit_status == 0
    add(folder, "new.jpg", files(folder)[0])
    with pytest.raises(AssertionError):
        run(job(folder, out), NEW)


def test_an_interrupted_listing_is_made_again_without_planning_twice(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = photos(30), tmp_path / "out"
    run(job(folder, out), QUIET)
    for number in range(45):
        add(folder, f"z/{number:02}.jpg", files(folder)[number % 30])
    change(files(folder)[1], files(folder)[0])
    listed = Storage.list

    def breaks(self: Storage, uri: str, after: str | None = None) -> Iterator[Entry]:
        for number, entry in enumerate(listed(self, uri, after)):
            if number == 60 and uri.endswith("photos"):
                raise ConnectionError("planted")
            yield entry

    monkeypatch.setattr(Storage, "list", breaks)
    with pytest.raises(ConnectionError):
        run(job(folder, out), NEW)
    monkeypatch.undo()
    done = len(table(out))
    assert done < 75
    assert (out / "_job" / "plan" / "00001" / "00000.parquet").exists()
    assert run(job(folder, out), NEW).images == 75 - done + 1
    assert sorted(keys(out)) == sorted(str(path.relative_to(folder)) for path in files(folder))
    assert run(job(folder, out), NEW).images == 0


@pytest.mark.parametrize(
    ("before", "after"), [({"limit": 7}, {"limit": 23}), ({"sample": 0.2}, {"sample": 0.7})]
)
def test_a_larger_choice_goes_on_with_the_same_output(
    before: dict[str, Any], after: dict[str, Any], photos: Photos, tmp_path: Path
) -> None:
    folder, out, fresh = photos(40), tmp_path / "out", tmp_path / "fresh"
    first = run(job(folder, out, input=before), QUIET).images
    kept = parts(out)
    second = run(job(folder, out, input=after), QUIET).images
    assert {name: data for name, data in parts(out).items() if name in kept} == kept
    assert run(job(folder, fresh, input=after), QUIET).images == first + second
    assert set(keys(fresh)) == set(keys(out))
    assert run(job(folder, out, input=before), QUIET).images == 0
    assert run(job(folder, out), QUIET).images == 40 - first - second


def test_images_beyond_the_limit_are_not_thought_vanished(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(12), tmp_path / "out"
    run(job(folder, out), QUIET)
    run(job(folder, out, input={"limit": 5}), PRUNE)
    assert not any(mark for (mark,) in rows(out, "vanished"))


def test_every_run_leaves_its_record(photos: Photos, tmp_path: Path, capsys: Any) -> None:
    folder, out = photos(12), tmp_path / "out"
    run(job(folder, out), QUIET)
    files(folder)[0].write_bytes(b"")
    add(folder, "new.jpg", files(folder)[1])
    run(job(folder, out, max_failed=1.0), RunOptions(new=True))
    said = capsys.readouterr().out
    assert "the input has 1 new, 1 changed\n" in said
    assert "2 of 13 images in" in said
    page = (out / "report.html").read_text()
    assert page.count('<th scope="row">20') == 2
    records = [json.loads(path.read_text()) for path in (out / "_job" / "runs").glob("*.json")]
    first, second = sorted(records, key=lambda record: record["started"])
    assert (first["images"], first["failed"], first["found"]["new"]) == (12, {}, 12)
    assert (second["images"], second["failed"], second["total"]) == (2, {"empty": 1}, 13)
    assert second["found"] == {"new": 1, "changed": 1, "vanished": 0}
    assert second["weights"] == "random:0"
    assert {"cnnbatch", "torch"} <= set(second["versions"])
    assert second["seconds"] > 0


step = st.tuples(
    st.lists(st.tuples(st.sampled_from(["add", "change", "remove"]), st.integers(0, 11)), max_size=5),
    st.sampled_from(["new", "prune", "plain"]),
)


@pytest.mark.slow
@given(st.lists(step, min_size=1, max_size=4))
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
def test_any_history_gives_what_a_fresh_run_gives(
    photos: Photos, tmp_path_factory: pytest.TempPathFactory, steps: list[Any]
) -> None:
    pictures, folder = files(photos(12)), tmp_path_factory.mktemp("history")
    root, out = folder / "photos", folder / "out"
    root.mkdir()
    for number in range(6):
        add(root, f"{number:02}.jpg", pictures[number])
    run(job(root, out, input={"shard_size": 4}), QUIET)
    ever, marked = {f"{number:02}.jpg" for number in range(6)}, set[str]()
    for turn, (edits, how) in enumerate(steps):
        for what, number in edits:
            path = root / f"{number:02}.jpg"
            if what == "remove":
                path.unlink(missing_ok=True)
            elif what == "add" or path.exists():
                change(add(root, path.name, pictures[number]), pictures[(number + turn + 1) % 12])
        there = {path.name for path in files(root)}
        if not there:
            return
        run(job(root, out, input={"shard_size": 4}), {"new": NEW, "prune": PRUNE, "plain": QUIET}[how])
        if how != "plain":
            ever |= there
            marked = marked - there | (ever - there if how == "prune" else set())
    run(job(root, out, input={"shard_size": 4}), NEW)
    fresh = folder / "fresh"
    run(job(root, fresh, input={"shard_size": 4}), QUIET)
    found = whole(out)
    assert len(found) == len(table(out))
    assert set(found) == ever | there
    expected = whole(fresh)
    assert {key: found[key] for key in expected} == expected
    assert {key for key, row in found.items() if row["vanished"]} == marked - there


@pytest.mark.slow
def test_a_bucket_is_looked_at_anew(photos: Photos, bucket: Bucket) -> None:
    pictures = files(photos(12))
    for number, path in enumerate(pictures):
        bucket.client.put_object(Bucket=bucket.name, Key=f"photos/{number:02}.jpg", Body=path.read_bytes())
    options = bucket.options.model_dump()
    spec = job(
        Path("unused"),
        "unused",
        input={"url": f"{bucket.url}/photos", "storage": options},
        output={"url": f"{bucket.url}/out", "storage": options},
    )
    assert run(spec, QUIET).images == 12
    bucket.client.put_object(Bucket=bucket.name, Key="photos/03.jpg", Body=pictures[4].read_bytes())
    bucket.client.put_object(Bucket=bucket.name, Key="photos/99.jpg", Body=pictures[5].read_bytes())
    bucket.client.delete_object(Bucket=bucket.name, Key="photos/11.jpg")
    assert run(spec, PRUNE).images == 2
    found = cnnbatch.open(f"{bucket.url}/out", options).arrow().to_pylist()
    values = [_rounded(row["values"]) for row in found]
    assert [row["key"] for row in found] == [f"{number:02}.jpg" for number in (*range(12), 99)]
    assert (values[3], values[12]) == (values[4], values[5])
    assert [row["key"] for row in found if row["vanished"]] == ["11.jpg"]
    assert run(spec, PRUNE).images == 0


def test_an_unfinished_part_is_made_of_what_the_input_has_now(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(25), tmp_path / "out"
    run(job(folder, out), QUIET)
    (out / "predictions" / "part-00000001.parquet").unlink()
    change(files(folder)[12], files(folder)[0])
    assert run(job(folder, out), NEW).images == 10
    run(job(folder, tmp_path / "fresh"), QUIET)
    assert whole(tmp_path / "fresh") == whole(out)
    assert run(job(folder, out), NEW).images == 0
    assert run(job(folder, out), QUIET).images == 0


def test_an_unfinished_part_knows_what_is_gone(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(25), tmp_path / "out"
    run(job(folder, out), QUIET)
    (out / "predictions" / "part-00000001.parquet").unlink()
    files(folder)[12].unlink()
    run(job(folder, out, max_failed=1.0), PRUNE)
    found = rows(out, "vanished", "error")
    assert [place for place, (mark, _) in enumerate(found) if mark] == [12]
    assert found[12][1]["code"] == "not_found"
    assert run(job(folder, out), PRUNE).images == 0


def test_a_night_without_news_leaves_nothing_behind(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = photos(25), tmp_path / "out"
    run(job(folder, out), QUIET)
    change(files(folder)[12], files(folder)[0])
    run(job(folder, out), NEW)
    before = sorted(path.name for path in (out / "_job" / "plan").rglob("*"))
    assert before.count("applied.json") == 1
    looked: list[int] = []
    footer = Output.footer

    def looking(self: Output, index: int) -> dict[str, Any]:
        looked.append(index)
        return footer(self, index)

    monkeypatch.setattr(Output, "footer", looking)
    assert run(job(folder, out), QUIET).images == 0
    assert looked == []  # What is known to be in the parts is not looked for again.
    assert run(job(folder, out), NEW).images == 0
    assert sorted(path.name for path in (out / "_job" / "plan").rglob("*")) == before


def test_so_many_images_are_taken_from_a_listing_without_an_end(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = photos(8), tmp_path / "out"
    listed = Storage.list

    def endless(self: Storage, uri: str, after: str | None = None) -> Iterator[Entry]:
        yield from listed(self, uri, after)
        if uri.endswith("photos"):
            yield from (Entry(f"{uri}/z{number:012}.jpg", 1, None) for number in itertools.count())

    monkeypatch.setattr(Storage, "list", endless)
    assert run(job(folder, out, input={"limit": 5}), QUIET).images == 5
    assert run(job(folder, out, input={"limit": 7}), QUIET).images == 2


def test_a_source_without_etags_has_nothing_changed(tmp_path: Path, photos: Photos, monkeypatch: Any) -> None:
    folder, out = photos(6), tmp_path / "out"
    listed = Files.refs

    def bare(self: Files, after: Any = None) -> Iterator[Any]:
        for ref in listed(self, after):
            yield type(ref)(ref.key, ref.uri)

    monkeypatch.setattr(Files, "refs", bare)
    run(job(folder, out), QUIET)
    change(files(folder)[0], files(folder)[1])
    assert run(job(folder, out), NEW).images == 0
