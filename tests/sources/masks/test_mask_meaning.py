"""What values of masks mean after `input.relabel` and `input.ignore`: the rules, value by value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.config.input import Input
from cnnbatch.errors import UserError
from cnnbatch.sources.masks.meaning import Meaning, meaning_of
from cnnbatch.truth import Class, classes_of, ignored_of

LISTED = ("sky", "road", "car", "lorry")


def meaning(listed: tuple[str, ...] = LISTED, **fields: Any) -> Meaning:
    return meaning_of(Input(url="x", **fields), [Class(name, number) for number, name in enumerate(listed)])


def name_of(found: Meaning, value: int) -> str | None:
    """Return the class of a file's value: None where it does not count, "?" where it has none."""
    number = int(found.of(np.array([[value]], np.uint16))[0, 0])
    if number in found.ignored:
        return None
    return {int(one.id): one.name for one in found.classes}.get(number, "?")


def by_hand(value: int, listed: tuple[str, ...], relabel: dict[str, int | str | None]) -> str | None:
    target = relabel.get(str(value), value)
    if isinstance(target, int):
        if target == 255 and len(listed) < 256:
            return None
        if not listed and all(isinstance(one, int | None) for one in relabel.values()):
            return str(target) if target < 255 else "?"
        if target < len(listed):
            return relabel.get(listed[target], listed[target])  # type: ignore[return-value]
        named = relabel.get(str(target))
        return named if isinstance(named, str) else "?"
    return target


NAMES = st.sampled_from(["sky", "road", "car", "vehicle", "other"])


@given(
    st.sampled_from([LISTED, ()]),
    st.dictionaries(
        st.sampled_from(["0", "1", "2", "3", "7", "255"]), st.one_of(st.none(), st.integers(0, 6), NAMES)
    ),
    st.dictionaries(st.sampled_from(LISTED), st.one_of(st.none(), NAMES)),
)
def test_each_value_is_what_the_rules_say(
    listed: tuple[str, ...],
    values: dict[str, int | str | None],
    names: dict[str, str | None],
) -> None:
    relabel = {**values, **(names if listed else {})}
    found = meaning(listed, relabel=relabel)
    for value in (*range(9), 254, 255):
        assert name_of(found, value) == by_hand(value, listed, relabel), value
    assert len({one.name for one in found.classes}) == len({one.id for one in found.classes})
    assert list(map(lambda one: one.id, found.classes)) == sorted(one.id for one in found.classes)
    schema = found.schema
    assert (classes_of(schema), ignored_of(schema)) == (found.classes, found.ignored)


def test_classes_are_merged_under_the_number_of_the_first() -> None:
    found = meaning(relabel={"car": "vehicle", "lorry": "vehicle"})
    assert found.classes == (Class("sky", 0), Class("road", 1), Class("vehicle", 2))
    assert found.moved == ((3, 2),)
    assert meaning(relabel={"lorry": "car"}).classes[-1] == Class("car", 2)


def test_classes_change_places() -> None:
    found = meaning(relabel={"sky": "road", "road": "sky"})
    assert [name_of(found, value) for value in range(4)] == ["road", "sky", "car", "lorry"]


def test_values_are_shifted_as_reduce_zero_label_does() -> None:
    shifted, said = meaning(relabel="reduce_zero_label"), meaning(relabel={"0": None, "1-254": "0-253"})
    assert shifted == said
    values = np.array([[0, 1, 4, 255]], np.uint8)
    assert shifted.of(values).tolist() == [[255, 0, 3, 255]]
    assert shifted.of(values).dtype == np.uint8
    assert shifted.strange(shifted.of(np.array([[5, 9, 9]], np.uint8))) == [4, 8]


def test_a_list_that_names_what_reduce_zero_label_leaves_out_is_refused() -> None:
    words = r"begins with 'Void'\n.*remove that line, or say input.ignore=\[Void\]"
    with pytest.raises(UserError, match=words):
        meaning(("Void", "sky", "road"), relabel="reduce_zero_label")
    shifted = meaning(("sky", "road"), relabel="reduce_zero_label")
    assert shifted.classes == (Class("sky", 0), Class("road", 1))


def test_values_without_a_list_have_names_by_relabel_or_their_numbers() -> None:
    trimap = meaning((), relabel={"1": "animal", "3": "animal", "2": "background"})
    assert trimap.classes == (Class("animal", 1), Class("background", 2))
    assert trimap.of(np.array([[1, 2, 3]], np.uint8)).tolist() == [[1, 2, 1]]
    assert trimap.named
    bare = meaning(())
    assert not bare.named
    assert bare.classes[:2] == (Class("0", 0), Class("1", 1))
    assert len(bare.classes) == 255
    assert name_of(bare, 255) is None


def test_ignored_classes_are_none() -> None:
    found = meaning(ignore=("lorry", 9))
    assert [one.name for one in found.classes] == ["sky", "road", "car"]
    assert found.ignored == {3, 9, 255}
    assert found.strange(np.array([[0, 3, 9, 255, 4]], np.uint8)) == [4]
    assert found.of(np.array([[3]], np.uint8)).tolist() == [[3]]


def test_a_class_may_have_255() -> None:
    listed = tuple(f"c{number}" for number in range(300))
    found = meaning(listed)
    assert found.ignored == frozenset()
    assert len(found.classes) == 300
    left_out = meaning(listed, relabel={"c299": None})
    assert left_out.ignored == {65_535}
    assert left_out.of(np.array([[255, 299]], np.uint16)).tolist() == [[255, 65_535]]
    assert left_out.of(np.array([[255]], np.uint8)).dtype == np.uint8


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"relabel": {"lory": "car"}},
            r"input.relabel: expected a class .* got 'lory'; did you mean lorry\?",
        ),
        ({"ignore": ("skyy",)}, r"input.ignore: expected a class .* got 'skyy'; did you mean sky\?"),
        ({"relabel": {"sky": 3}}, "the class 'sky' becomes a class or nothing, got the number 3"),
        ({"relabel": {"1-3": "0-1"}}, r"as many numbers as values, got 1-3 \(3\) and 0-1 \(2\)"),
        ({"relabel": {"3-1": "0-2"}}, "expected numbers from 0 to 65,535, ascending, got 3-1"),
        ({"relabel": {"70000": None}}, "expected numbers from 0 to 65,535, ascending, got 70000"),
    ],
)
def test_what_can_not_be_is_said(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        meaning(**fields)
