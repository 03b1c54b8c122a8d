"""Persons of an index on the command line: grouped, appended to, corrected, and what people said holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cnnbatch.cli.app import app
from cnnbatch.index.manifest import read_manifest
from cnnbatch.index.objects import unnamed
from cnnbatch.index.persons import changing
from cnnbatch.storage import Storage
from tests.embedded import Vectors, build, people, write_pictures

JOIN = ("--similarity", 0.35, "--unsure", 0.3)


def ask(*words: object, status: int = 0) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == status, done.output
    return done.output


def faces(count: int = 40) -> Vectors:
    return people(count, dimensions=64)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return an index of four persons with ten faces each, in order."""
    write_pictures(tmp_path / "out", faces())
    build(tmp_path / "out", tmp_path / "index")
    return tmp_path / "index"


def who(place: Path) -> dict[str, int | None]:
    """Return the person of each face by its id."""
    to = place.parent / f"{len([*place.parent.iterdir()])}.parquet"
    ask("persons", place, "--to", to)
    return {row["id"]: row["person"] for row in pq.read_table(to).to_pylist()}


def face(number: int) -> str:
    return f"p{number:06}.jpg"


def groups(found: dict[str, Any]) -> set[frozenset[str]]:
    return {frozenset(one for one, person in found.items() if person == number) for number in found.values()}


def tens(*numbers: int) -> frozenset[str]:
    return frozenset(face(number) for ten in numbers for number in range(10 * ten, 10 * ten + 10))


def test_faces_become_persons_and_keep_their_numbers(place: Path, tmp_path: Path) -> None:
    assert "40 faces, 40 of them new to this\n  4 persons" in ask("group", place, *JOIN)
    before = who(place)
    assert groups(before) == {tens(0), tens(1), tens(2), tens(3)}
    assert "0 of them new" in ask("group", place)
    more = np.concatenate([faces()[5:15] + 0.01, people(70, dimensions=64)[60:]])
    write_pictures(tmp_path / "more", more, name="q")
    build([tmp_path / "out", tmp_path / "more"], place)
    assert "60 faces, 20 of them new to this\n  5 persons, of whom 0 have one face; 4 before" in ask(
        "group", place
    )
    after = who(place)
    assert {one: after[one] for one in before} == before
    assert [after[f"q{number:06}.jpg"] for number in range(20)] == [0] * 5 + [1] * 5 + [4] * 10


def test_the_job_does_what_the_command_does(place: Path, tmp_path: Path) -> None:
    copytree(place, tmp_path / "other")
    ask("group", place, "--similarity", 0.35)
    ask("run", "group", f"input={tmp_path / 'other'}", "group.similarity=0.35")
    assert who(tmp_path / "other") == who(place)
    again = ask("run", "group", f"input={place}", "group.similarity=-0.2", "group.anew=true", "--json")
    summary = json.loads(again.splitlines()[-1])
    assert (summary["images"], summary["total"], summary["found"]) == (0, 40, {"persons": 1, "unsure": 0})
    state = (place / "manifest.json").read_bytes()
    said = ask("run", "group", f"input={place}", "group.evaluate=country", "group.similarity=0.35")
    assert said.endswith(ask("group", place, "--evaluate", "country", "--similarity", 0.35))
    assert "  0.3500  " in said
    assert (place / "manifest.json").read_bytes() == state


def test_what_was_said_holds_when_all_is_grouped_again(place: Path) -> None:
    ask("group", place, *JOIN)
    ask("persons", place, "--name", 2, "ann")
    ask("persons", place, "--merge", 0, "ann")
    assert groups(who(place)) == {tens(0, 2), tens(1), tens(3)}
    ask("persons", place, "--split", 1, "--faces", face(10), "--faces", face(11), "--yes")
    apart = frozenset({face(10), face(11)})
    assert groups(who(place)) == {tens(0, 2), tens(1) - apart, apart, tens(3)}
    ask("group", place, "--anew")
    found = groups(who(place))
    assert tens(0, 2) in found
    assert not any(one & apart and one & tens(1) - apart for one in found)
    assert "0\tann\t20\t" in ask("persons", place)
    ask("persons", place, "--take-back", "ann")
    ask("persons", place, "--take-back", face(10))
    ask("persons", place, "--take-back", face(11))
    ask("group", place, "--anew")
    assert groups(who(place)) == {tens(0), tens(1), tens(2), tens(3)}


def test_a_proposed_cut_finds_who_was_merged(place: Path, tmp_path: Path) -> None:
    ask("group", place, "--similarity", -0.2)
    assert len(groups(who(place))) == 1
    before = who(place)
    said = ask("persons", place, "--split", 0, "--sheet", tmp_path / "halves.jpg")
    assert f"shown in {tmp_path / 'halves.jpg'}" in said
    assert "40 pictures of" in said  # Nothing lies where these outputs say.
    assert "nothing was changed: give --yes" in said
    assert who(place) == before
    second = frozenset(line.split("\t")[1] for line in said.splitlines() if line.startswith("second"))
    assert all(tens(one) <= second or not tens(one) & second for one in range(4))
    ask("persons", place, "--split", 0, "--yes")
    assert second in groups(who(place))


def test_an_unsure_face_is_said_to_be_of_a_person(place: Path) -> None:
    """The first face is unsure at first, and of whom it was said to be ever after."""
    ask("group", place, "--similarity", 0.75, "--unsure", 0.3)
    before = who(place)
    unsure = [one for one, person in before.items() if person is None]
    known = next(one for one, person in before.items() if person is not None)
    ask("persons", place, "--merge", before[known], unsure[0])
    assert who(place) == {**before, unsure[0]: before[known]}
    ask("group", place, "--anew", "--similarity", 0.99)
    found = who(place)
    assert found[unsure[0]] == found[known] == before[known]
    said = ask("persons", place, "--merge", before[known], known, status=2)
    assert "expected the number or the name of a person" in said


def test_faces_of_one_id_in_two_outputs_are_two_faces(tmp_path: Path) -> None:
    """The first ten faces of each output have the same ids, and are of two persons who are grouped as one."""
    for number in range(2):
        write_pictures(tmp_path / f"out{number}", faces()[10 * number : 10 * number + 10])
    build([tmp_path / "out0", tmp_path / "out1"], tmp_path / "index")
    ask("group", tmp_path / "index", "--similarity", -0.2)
    ask("persons", tmp_path / "index", "--split", 0, "--yes")
    ask("persons", tmp_path / "index", "--to", tmp_path / "faces.parquet")
    rows = pq.read_table(tmp_path / "faces.parquet").to_pylist()
    assert {(row["output"], row["person"]) for row in rows} == {(0, 0), (1, 1)}


def test_contradictions_are_shown_and_nothing_changes(place: Path) -> None:
    ask("group", place, *JOIN)
    ask("persons", place, "--merge", 0, 1)
    state = who(place)
    for more in ((), ("--yes",)):
        said = ask("persons", place, "--split", 0, "--faces", face(5), *more, status=2)
        assert f"of one person, {face(0)} and {face(5)}; nothing was changed" in " ".join(said.split())
    assert "all faces were said to be of one person" in ask("persons", place, "--split", 0, status=2)
    assert who(place) == state
    ask("persons", place, "--take-back", face(5))
    ask("persons", place, "--split", 0, "--faces", face(5), "--yes")
    state = who(place)
    said = ask("persons", place, "--merge", 0, 4, status=2)
    assert f"of two persons, {face(0)} and {face(5)}; nothing was changed" in " ".join(said.split())
    assert who(place) == state
    assert state[face(5)] == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--merge", 0, 99), "expected the number or the name of a person, got '99'"),
        (("--merge", 0, "an"), "did you mean ann"),
        (("--merge", 3, 3), "can't be merged with itself"),
        (("--name", 1, "0"), "expected a name that is no number"),
        (("--name", 1, "ann"), "person 0 is called 'ann' already"),
        (("--split", 0, "--faces", "x.jpg"), "has no face x.jpg"),
        (("--split", 0, "--take-back", 1), "one of --name"),
        (("--name", 1, "ann\n"), "expected a name of one line"),
        (("--take-back", 1), "nothing was said of the faces of person 1 that could be taken back"),
        (("--take-back", "ann"), "nothing was said of the faces of person 0 (ann)"),
        (("--take-back", face(3)), f"nothing was said of the face {face(3)}"),
        (("--take-back", 99), "expected the number or the name of a person, got '99'"),
        (("--merge", 0, 1, "--yes"), "expected --split with"),
        (("--split", 0, "--to", "new.parquet"), "leave it out"),
        (("--merge", 0, 1, "--to", __file__), "is there already"),
    ],
)
def test_mistakes_change_nothing(place: Path, words: tuple[object, ...], message: str) -> None:
    ask("group", place, *JOIN)
    ask("persons", place, "--name", 0, "ann")
    before = (place / "manifest.json").read_bytes()
    assert message in " ".join(ask("persons", place, *words, status=2).split())
    assert (place / "manifest.json").read_bytes() == before


def test_what_other_similarities_would_give_is_measured(tmp_path: Path) -> None:
    """Four persons, each in a folder of ten, and a copy of the first face in the folder of the second."""
    vectors = faces()
    for number in range(4):
        name = f"{number}/p"
        write_pictures(tmp_path / f"out{number}", vectors[10 * number : 10 * number + 10], name=name)
    wrong = [tmp_path / f"out{number}" for number in range(4)]
    write_pictures(tmp_path / "out4", vectors[:1], name="1/q")
    build([*wrong, tmp_path / "out4"], tmp_path / "index")
    said = ask("group", tmp_path / "index", "--similarity", 0.35, "--evaluate", "folder")
    (line,) = [one for one in said.splitlines() if one.strip().startswith("0.3500")]
    numbers = [float(one) for one in re.findall(r"(?<=\s)[01]\.\d{3}(?= )", line)]
    together = 45 * 4  # pairs of one folder in one group; the copy is in ten more of a folder, and of a group
    assert numbers[:2] == pytest.approx([together / (together + 10), together / (together + 10)], abs=6e-4)
    assert "persons" not in (tmp_path / "index" / "manifest.json").read_text()


def test_without_a_grouping_or_a_similarity_it_says_what_to_do(place: Path) -> None:
    assert "cnnbatch group" in ask("persons", place, status=2)
    assert "cnnbatch calibrate first" in ask("group", place, status=2)
    assert "between -1 and 1" in ask("group", place, "--similarity", 0.3, "--unsure", 0.4, status=2)


def test_who_is_who_is_part_of_the_state(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill before the manifest leaves the state as it was; compacting deletes what it no longer names."""
    ask("group", place, *JOIN)
    state = who(place)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(changing, "commit", killed)
        ask("persons", place, "--merge", 0, 1, status=130)
    assert who(place) == state
    storage = Storage()
    found = read_manifest(str(place), storage)
    assert found is not None
    assert len([*unnamed(str(place), storage, found[0])]) == 1
    ask("index", "compact", place)
    found = read_manifest(str(place), storage)
    assert found is not None
    assert not [*unnamed(str(place), storage, found[0])]
    assert who(place) == state


def test_faces_that_are_gone_are_of_nobody(place: Path, tmp_path: Path) -> None:
    ask("group", place, *JOIN)
    write_pictures(tmp_path / "out", faces(38))
    build(tmp_path / "out", place)
    ask("group", place)
    assert {*who(place)} == {face(number) for number in range(38)}


def test_a_person_without_faces_is_named_and_goes_with_the_next_grouping(place: Path, tmp_path: Path) -> None:
    ask("group", place, *JOIN)
    ask("persons", place, "--name", 3, "ann")
    write_pictures(tmp_path / "out", faces(30))
    build(tmp_path / "out", place)
    said = ask("persons", place, "--split", "ann", status=2)
    assert "person 3 (ann) has no faces in the index any more" in said
    ask("group", place)
    assert "expected the number or the name" in ask("persons", place, "--split", "ann", status=2)
    ask("persons", place, "--name", 0, "ann")
    assert "0\tann\t10" in ask("persons", place)
    build(write_pictures(tmp_path / "out", faces()), place)
    ask("group", place)
    assert who(place)[face(30)] == 4  # No number is given twice.
