"""Jobs that ask an index about a collection, beside brute force: rows, kills, workers, states."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import cnnbatch
from cnnbatch.cli.evaluate_again import evaluate_again
from cnnbatch.errors import UserError
from cnnbatch.index.calibrate import Known, calibrate
from cnnbatch.index.persons import correcting
from cnnbatch.index.persons.group import group
from cnnbatch.index.questions import part as part_module
from cnnbatch.index.questions import run as run_module
from cnnbatch.index.questions.run import ask
from cnnbatch.index.search import open_index
from cnnbatch.inference.run import RunOptions, Summary
from cnnbatch.job import IdentifyJob, SearchJob, load_job
from cnnbatch.storage import NotFound
from cnnbatch.terminal.screen import Screen
from tests.embedded import QUIET, build, nearest, of_faces, people, photo, row, space
from tests.outputs import write_job, write_part

JOB = """\
kind: map
task: {name: faces}
input: {url: %s, keep: [country, year]}
output: {url: %s}
"""
PEOPLE, EACH = 30, 6
VECTORS = people(PEOPLE * EACH, each=EACH)
WHO = [f"p{number // EACH:02}" for number in range(PEOPLE * EACH)]


def write_faces(folder: Path, rows: list[dict[str, Any]], each: int = 25) -> Path:
    """Write an output of photos with faces, ``each`` a part."""
    write_job(folder, text=JOB)
    for number in range(-(-len(rows) // each)):
        write_part(folder, number, rows[number * each : (number + 1) * each], schema=of_faces(space()))
    return folder


def known(vectors: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    """Return a photo of each person's each picture, in a folder a person."""
    return [photo(f"{who}/{number:03}.jpg", [vectors[number]]) for number, who in enumerate(WHO)]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an index of all pictures, in folders a person."""
    folder = tmp_path_factory.mktemp("gallery")
    build(write_faces(folder / "out", known(VECTORS)), folder / "index")
    return folder / "index"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return photos to ask about: of one, of two, of nobody, one that failed, one that vanished."""
    folder = tmp_path_factory.mktemp("found")
    rng = np.random.default_rng(5)
    noisy = VECTORS + 0.1 * rng.standard_normal(VECTORS.shape).astype(np.float32)
    rows = [photo(f"{WHO[one]}/new{one:03}.jpg", [noisy[one]]) for one in range(0, 60, 2)]
    rows += [photo(f"{WHO[70]}/two.jpg", [noisy[70], noisy[71]]), photo("x/none.jpg", [])]
    error = {"stage": "decode", "code": "truncated", "message": "it ends early"}
    rows += [row("x/bad.jpg", objects=None, error=error), photo("x/gone.jpg", [noisy[0]], vanished=True)]
    rows += [photo("x/odd.jpg", [np.full(16, np.nan), noisy[8]])]
    strangers = people(24, seed=9, each=1)
    rows += [photo(f"s{number}/a.jpg", [vector]) for number, vector in enumerate(strangers)]
    return write_faces(folder / "found", rows, each=20)


def search(found: Path, index: Path, to: Path, options: RunOptions = QUIET, **more: Any) -> Summary:
    return ask(job(SearchJob, found, index, to, **more), options)


def identify(found: Path, index: Path, to: Path, options: RunOptions = QUIET, **more: Any) -> Summary:
    return ask(job(IdentifyJob, found, index, to, **more), options)


def job(kind: Any, found: Path, index: Path, to: Path, **more: Any) -> Any:
    compute = {"pool": "inline", **more.pop("compute", {})}
    places = {"input": {"url": str(found)}, "index": {"url": str(index)}, "output": {"url": str(to)}}
    return kind.model_validate({**places, "compute": compute, "max_failed": 0.5, **more})


def table(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = cnnbatch.open(folder).arrow().to_pylist()
    return rows


def faces(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what was answered of each face that was asked about, by its id."""
    return {
        f"{one['key']}#{place}": face
        for one in table(folder)
        for place, face in enumerate(one["objects"] or [])
    }


def asked_vectors(found: Path) -> dict[str, Any]:
    rows = cnnbatch.open(found).arrow(["key", "objects", "vanished"]).to_pylist()
    return {
        f"{one['key']}#{place}": face["embedding"]
        for one in rows
        for place, face in enumerate(one["objects"] or [])
        if not one["vanished"] and np.isfinite(face["embedding"]).all()
    }


def test_a_search_of_a_collection_gives_each_face_its_nearest(
    found: Path, gallery: Path, tmp_path: Path
) -> None:
    summary = search(found, gallery, tmp_path / "to", search={"k": 4})
    rows = table(tmp_path / "to")
    assert [one["key"] for one in rows] == [one["key"] for one in table(found)]
    assert summary.images == len(rows)
    assert summary.failed == {"truncated": 1}
    asked, answers = asked_vectors(found), faces(tmp_path / "to")
    best = nearest(np.array([*asked.values()], np.float32), VECTORS, 4)
    ids = [[f"{WHO[row]}/{row:03}.jpg#0" for row in line] for line in best]
    assert [[one["id"] for one in answers[face]["matches"]] for face in asked] == ids
    first = answers["p00/new000.jpg#0"]
    assert first["matches"][0]["box"] == {"x1": 0.0, "y1": 5.0, "x2": 8.0, "y2": 13.0}
    assert first["matches"][0]["year"] == row(first["matches"][0]["key"])["year"]
    assert first["is_known"] is None
    assert "is not calibrated" in first["reason"]
    assert "embedding" not in first
    unanswered = [answers[name]["matches"] for name in ("x/gone.jpg#0", "x/odd.jpg#0")]
    assert unanswered == [None, None]
    assert [one["objects"] for one in rows if one["key"] in ("x/none.jpg", "x/bad.jpg")] == [[], None]


def test_a_condition_applies_before_ranking(found: Path, gallery: Path, tmp_path: Path) -> None:
    search(found, gallery, tmp_path / "to", search={"k": 3, "where": "country = 'DE'"})
    chosen = [n for n, who in enumerate(WHO) if row(f"{who}/{n:03}.jpg")["country"] == "DE"]
    asked = asked_vectors(found)
    best = nearest(np.array([*asked.values()], np.float32), VECTORS[chosen], 3)
    answers = faces(tmp_path / "to")
    ids = [[f"{WHO[chosen[at]]}/{chosen[at]:03}.jpg#0" for at in line] for line in best]
    assert [[one["id"] for one in answers[face]["matches"]] for face in asked] == ids
    with pytest.raises(UserError, match="country"):
        search(found, gallery, tmp_path / "wrong", search={"where": "contry = 'DE'"})


def test_a_row_is_no_match_of_itself_unless_asked(gallery: Path, tmp_path: Path) -> None:
    own = gallery.parent / "out"
    search(own, gallery, tmp_path / "others", search={"k": 1})
    search(own, gallery, tmp_path / "itself", search={"k": 1, "itself": True})
    similarity = VECTORS @ VECTORS.T
    np.fill_diagonal(similarity, -1)
    others, itself = faces(tmp_path / "others"), faces(tmp_path / "itself")
    names = [f"{who}/{number:03}.jpg#0" for number, who in enumerate(WHO)]
    expected = [names[place] for place in similarity.argmax(1)]
    assert [others[name]["matches"][0]["id"] for name in names] == expected
    assert [itself[name]["matches"][0]["id"] for name in names] == names


def test_faces_are_named_and_judged_where_the_truth_is_known(
    found: Path, gallery: Path, tmp_path: Path
) -> None:
    from shutil import copytree

    index = Path(copytree(gallery, tmp_path / "index"))
    strangers = [photo(f"q{n}/a.jpg", [one]) for n, one in enumerate(people(120, seed=3, each=1))]
    absent = write_faces(tmp_path / "absent", strangers)
    calibrate(open_index(str(index)), Known(people="folder", absent=str(absent)))
    to = tmp_path / "to"
    identify(found, index, to, identify={"rate": 0.1, "truth": "folder", "matches": 3})
    answers, asked = faces(to), asked_vectors(found)
    stored = VECTORS.astype(np.float16).astype(np.float32)
    threshold = next(iter(answers.values()))["threshold"]
    assert threshold is not None
    for name, vector in asked.items():
        scores = (np.array(vector) / np.linalg.norm(vector)) @ stored.T
        per_person = scores.reshape(PEOPLE, EACH).max(1)
        ranked = np.argsort(-per_person)[:3]
        assert [one["person"] for one in answers[name]["matches"]] == [f"p{who:02}" for who in ranked]
        assert answers[name]["similarity"] == pytest.approx(per_person[ranked[0]], abs=2e-3)
        is_known = answers[name]["similarity"] >= threshold
        assert answers[name]["is_known"] == is_known
        assert answers[name]["person"] == (f"p{ranked[0]:02}" if is_known else None)
        assert answers[name]["label"] == (f"p{ranked[0]:02}" if is_known else "unknown")
        assert answers[name]["detector_score"] == pytest.approx(0.9)
    metrics = cnnbatch.open(to).evaluation().metrics
    rows = [one for one in table(to) if one["true_person"] and not one["vanished"]]
    judged = [
        (one, answers[f"{one['key']}#{one['judged_face']}"]) for one in rows if one["judged_face"] is not None
    ]
    named = [bool(face["is_known"]) for one, face in judged if not one["is_enrolled"]]
    named += [False for one in rows if one["judged_face"] is None]  # x/none.jpg and x/bad.jpg.
    mated = [(one["true_person"], face) for one, face in judged if one["is_enrolled"]]
    assert metrics["FPIR"].value == pytest.approx(np.mean(named))
    missed = np.mean([not (face["is_known"] and face["person"] == who) for who, face in mated])
    assert metrics["FNIR"].value == pytest.approx(missed)
    right = np.mean([face["matches"][0]["person"] == who for who, face in mated])
    assert metrics["rank1"].value == pytest.approx(right)
    assert metrics["faces"].value == len(asked)
    assert metrics["known"].value == sum(answers[name]["is_known"] for name in asked)
    before = cnnbatch.open(to).evaluation()
    (to / "evaluation.json").unlink()
    assert evaluate_again(str(to), [], Screen(quiet=True)) == before == cnnbatch.open(to).evaluation()
    with pytest.raises(UserError, match="not for the answers of an index"):
        evaluate_again(str(to), ["truth=x.csv"], Screen(quiet=True))
    assert "p00" in (to / "report.html").read_text()


def test_who_is_in_a_gallery_of_another_output_is_named(found: Path, gallery: Path, tmp_path: Path) -> None:
    few = write_faces(tmp_path / "few", [photo("Ann/a.jpg", [VECTORS[0]]), photo("Bob/b.jpg", [VECTORS[6]])])
    identify(found, gallery, tmp_path / "to", identify={"gallery": str(few)})
    match = faces(tmp_path / "to")["p01/new006.jpg#0"]["matches"]
    assert [one["person"] for one in match] == ["Bob", "Ann"]
    assert match[0]["id"] == "Bob/b.jpg#0"


def test_a_gallery_is_no_index_and_a_picture_in_it_is_no_match_of_itself(
    gallery: Path, tmp_path: Path
) -> None:
    own = gallery.parent / "out"
    few = write_faces(tmp_path / "few", [photo("Ann/a.jpg", [VECTORS[0]]), photo("Bob/b.jpg", [VECTORS[6]])])
    identify(own, gallery, tmp_path / "few_named", identify={"gallery": str(few)})
    names = [f"{who}/{number:03}.jpg#0" for number, who in enumerate(WHO)]
    answers = faces(tmp_path / "few_named")
    assert all(len(answers[name]["matches"]) == 2 for name in names)
    identify(own, gallery, tmp_path / "own_named", identify={"gallery": str(own), "matches": 1})
    answers = faces(tmp_path / "own_named")
    similarity = VECTORS @ VECTORS.T
    np.fill_diagonal(similarity, -1)
    assert [answers[name]["matches"][0]["id"] for name in names] == [names[n] for n in similarity.argmax(1)]


def test_a_part_of_another_network_is_named(gallery: Path, tmp_path: Path) -> None:
    mixed = write_faces(tmp_path / "mixed", known(VECTORS)[:10])
    write_part(mixed, 1, known(VECTORS)[10:12], schema=of_faces(space(weights="1" * 64)))
    with pytest.raises(UserError, match="part-00000001"):
        search(mixed, gallery, tmp_path / "to")


def test_a_truth_that_nobody_has_judges_nothing(gallery: Path, tmp_path: Path) -> None:
    flat = write_faces(tmp_path / "flat", [photo("a.jpg", [VECTORS[0]]), photo("b.jpg", [])])
    identify(flat, gallery, tmp_path / "to", identify={"truth": "folder"})
    evaluation = cnnbatch.open(tmp_path / "to").evaluation()
    assert (evaluation.images, set(evaluation.metrics)) == (0, {"faces", "known", "unknown", "undecided"})


def test_workers_change_no_row_and_a_killed_job_continues(
    found: Path, gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(found, gallery, tmp_path / "one")
    search(found, gallery, tmp_path / "two", compute={"pool": "local", "workers": 2})
    assert table(tmp_path / "one") == table(tmp_path / "two")
    put = part_module.PartAnswerer._put
    done: list[int] = []

    def killed(self: Any, pending: Any, *rest: Any) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(pending.part)
        put(self, pending, *rest)

    monkeypatch.setattr(part_module.PartAnswerer, "_put", killed)
    with pytest.raises(KeyboardInterrupt):
        search(found, gallery, tmp_path / "killed")
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed/predictions").iterdir()}
    assert len(parts) == 2
    monkeypatch.undo()
    summary = search(found, gallery, tmp_path / "killed")
    assert summary.images == len(table(found)) - 40
    assert all(path.stat().st_mtime_ns == time for path, time in parts.items())
    assert table(tmp_path / "killed") == table(tmp_path / "one")
    assert search(found, gallery, tmp_path / "killed").images == 0


def test_what_was_answered_but_not_reported_is_reported(
    found: Path, gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "evaluate_answers", killed)
    with pytest.raises(KeyboardInterrupt):
        search(found, gallery, tmp_path / "to")
    monkeypatch.undo()
    assert search(found, gallery, tmp_path / "to").images == 0
    assert (tmp_path / "to/report.html").exists()
    assert cnnbatch.open(tmp_path / "to").evaluation().metrics["faces"].value == len(asked_vectors(found))


def test_names_are_of_rows_that_fulfil_the_condition(found: Path, gallery: Path, tmp_path: Path) -> None:
    identify(found, gallery, tmp_path / "to", identify={"where": "key >= 'p20'", "matches": 2})
    for face in faces(tmp_path / "to").values():
        assert all(one["person"] >= "p20" for one in face["matches"] or [])


def test_another_state_of_the_index_is_refused(found: Path, gallery: Path, tmp_path: Path) -> None:
    out = write_faces(tmp_path / "out", known(VECTORS)[:60])
    build(out, tmp_path / "index")
    search(found, tmp_path / "index", tmp_path / "to")
    write_part(out, 9, known(VECTORS)[60:80], schema=of_faces(space()))
    build(out, tmp_path / "index")
    with pytest.raises(UserError, match="index.state"):
        search(found, tmp_path / "index", tmp_path / "to")
    with pytest.raises(UserError, match=r"search\.k"):
        search(found, tmp_path / "index", tmp_path / "to", search={"k": 3})
    write_job(tmp_path / "other", text=JOB)
    write_part(
        tmp_path / "other", 0, [photo("a.jpg", [VECTORS[0]])], schema=of_faces(space(weights="1" * 64))
    )
    with pytest.raises(UserError, match="1111111111111111"):
        search(tmp_path / "other", gallery, tmp_path / "to2")
    with pytest.raises(UserError, match="holds what another job has made"):
        search(found, gallery, out)


def test_what_the_collection_has_since_is_answered(gallery: Path, tmp_path: Path) -> None:
    found = write_faces(tmp_path / "found", known(VECTORS)[:40], each=20)
    search(found, gallery, tmp_path / "to")
    write_part(found, 1, known(VECTORS)[50:70], schema=of_faces(space()))
    write_part(found, 2, known(VECTORS)[70:80], schema=of_faces(space()))
    assert search(found, gallery, tmp_path / "to").images == 10
    assert "p08/050.jpg#0" not in faces(tmp_path / "to")
    assert search(found, gallery, tmp_path / "to", RunOptions(quiet=True, new=True)).images == 20
    assert set(faces(tmp_path / "to")) == set(asked_vectors(found))
    assert search(found, gallery, tmp_path / "to", RunOptions(quiet=True, new=True)).images == 0


def test_columns_and_people_that_are_not_there_are_named(found: Path, gallery: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the index keeps no column 'name'"):
        identify(found, gallery, tmp_path / "a", identify={"people": "name"})
    with pytest.raises(UserError, match="has no column 'who'"):
        identify(found, gallery, tmp_path / "b", identify={"truth": "who"})
    with pytest.raises(UserError, match="nobody is to be found"):
        identify(found, gallery, tmp_path / "c", identify={"where": "year = 1900"})


def test_faces_are_named_by_the_persons_of_the_index(found: Path, gallery: Path, tmp_path: Path) -> None:
    """Two persons have names; of these the best face that fulfils a condition counts."""
    place = str(copytree(gallery, tmp_path / "index"))
    persons = group(place, 0.5, 0.5).persons.faces.to_pylist()
    ids = [f"{who}/{number:03}.jpg#0" for number, who in enumerate(WHO)]
    who = {one["id"]: one["person"] for one in persons}
    chosen = [n for n, one in enumerate(ids) if row(one.partition("#")[0])["country"] == "DE"]
    named = dict(zip(("first", "second"), sorted({who[ids[one]] for one in chosen}), strict=False))
    for called, number in named.items():
        correcting.name(place, str(number), called)
    identify(found, Path(place), tmp_path / "to", identify={"where": "country = 'DE'"})
    asked, answers = asked_vectors(found), faces(tmp_path / "to")
    for face, vector in asked.items():
        [order] = nearest(np.array([vector], np.float32), VECTORS[chosen], len(chosen))
        ranked = [ids[chosen[place]] for place in order]
        best = {called: next(one for one in ranked if who[one] == number) for called, number in named.items()}
        matches = answers[face]["matches"]
        assert {match["person"]: match["id"] for match in matches} == best
        assert ranked.index(matches[0]["id"]) < ranked.index(matches[1]["id"])


def test_jobs_come_along_and_take_an_index() -> None:
    loaded = load_job("identify", ["input=photos", "index=people", "output=named", "identify.matches=2"])
    assert isinstance(loaded, IdentifyJob)
    assert (loaded.index.url, loaded.identify.matches) == ("people", 2)
    with pytest.raises(UserError, match=r"did you mean search.where"):
        load_job("search", ["input=photos", "index=people", "output=named", "search.wher=x"])
    with pytest.raises(UserError, match="index"):
        load_job("search", ["input=photos", "output=named"])


def test_parts_are_as_their_footers_say(found: Path, gallery: Path, tmp_path: Path) -> None:
    search(found, gallery, tmp_path / "to")
    result = cnnbatch.open(tmp_path / "to")
    assert sum(one.info["answers"]["faces"] for one in result.receipts()) == len(asked_vectors(found))
    schema = pq.read_schema(tmp_path / "to/predictions/part-00000000.parquet")
    assert "embedding" not in str(schema)
    with pytest.raises(NotFound):
        result.storage.read(str(tmp_path / "to/_job/unreported.json"))
