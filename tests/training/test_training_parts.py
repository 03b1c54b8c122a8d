"""What trains, what validates and what tests: each image in one part, and in the same one later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch import truth
from cnnbatch.config.input import Subset
from cnnbatch.errors import UserError
from cnnbatch.sources.classes import OfClasses
from cnnbatch.sources.cuts import fold_of, fraction, part_by_hash
from cnnbatch.sources.subsets import SubsetSource
from cnnbatch.types import ImageRef, Shard


class Listed:
    """A source of some keys, whose classes are their first letters."""

    columns = pa.schema([pa.field("set", pa.string())])
    truth_schema = truth.LABEL_SCHEMA

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = list(keys)

    def refs(self, after: ImageRef | None = None):  # type: ignore[no-untyped-def]
        yield from (ImageRef(key, key, columns={"set": key.split("/")[0]}) for key in self.keys)

    def read(self, shard: Shard):  # type: ignore[no-untyped-def]
        raise NotImplementedError

    def truth(self, shard: Shard) -> pa.Table:
        rows = [{"image_id": ref.key, "label": ref.key.rpartition("/")[2][0]} for ref in shard.refs]
        return truth.table(rows, truth.LABEL_SCHEMA)


def part(source: Listed, name: str, **rule: object) -> set[str]:
    subset = Subset.model_validate({"part": name, **rule})
    try:
        return {ref.key for ref in SubsetSource(source, subset).refs()}
    except UserError:
        return set()


keys = st.sets(st.text("abc0123456789", min_size=1, max_size=6), min_size=1, max_size=60)
shares = st.sampled_from([0.0, 0.1, 0.3])


@given(keys, shares, shares, st.integers(0, 3), st.sampled_from([None, 1, 3]))
def test_each_image_belongs_to_one_part(
    names: set[str], validation: float, test: float, seed: int, per_class: int | None
) -> None:
    source = Listed(sorted(names))
    rule = {"validation": validation, "test": test, "seed": seed, "per_class": per_class}
    found = [part(source, one, **rule) for one in ("train", "validation", "test")]
    assert sum(map(len, found)) == len(names)
    assert set.union(*found) == names
    if per_class is not None:
        learned = Counter(name[0] for name in found[0] | found[1])
        assert all(count <= per_class for count in learned.values())


@given(keys, keys)
def test_an_image_stays_in_its_part_when_others_come(some: set[str], more: set[str]) -> None:
    for name in ("train", "validation", "test"):
        assert part(Listed(sorted(some)), name) == part(Listed(sorted(some | more)), name) & some


def test_a_smaller_share_is_a_part_of_a_larger_one_and_validates_by_the_same() -> None:
    source = Listed(f"a{number}" for number in range(2000))
    few, more = part(source, "train", share=0.1), part(source, "train", share=0.5)
    assert few < more < part(source, "train")
    assert len(few) / len(part(source, "train")) == pytest.approx(0.1, abs=0.03)
    assert part(source, "validation", share=0.1) == part(source, "validation")


def test_the_shares_are_what_they_say() -> None:
    parts = Counter(part_by_hash(f"album/{number}.jpg", 0.2, 0.1) for number in range(5000))
    assert parts["validation"] / 5000 == pytest.approx(0.2, abs=0.02)
    assert parts["test"] / 5000 == pytest.approx(0.1, abs=0.02)


def test_each_purpose_draws_anew() -> None:
    pairs = [(fraction(str(key), "one"), fraction(str(key), "two")) for key in range(2000)]
    both = sum(one < 0.5 and two < 0.5 for one, two in pairs)
    assert both / 2000 == pytest.approx(0.25, abs=0.04)


def test_folders_and_columns_say_the_part() -> None:
    source = Listed(["train/a1", "train/a2", "Val/a3", "test/a4", "others/a5"])
    for by in ("folder", "set"):
        rule = {"by": by, "validation": 0.0, "test": 0.0}
        assert part(source, "train", **rule) == {"train/a1", "train/a2"}
        assert part(source, "validation", **rule) == {"Val/a3"}
        assert part(source, "test", **rule) == {"test/a4"}


def test_what_is_lacking_is_cut_from_what_trains() -> None:
    source = Listed([*(f"train/a{number}" for number in range(100)), "test/a"])
    rule = {"by": "folder", "validation": 0.2, "test": 0.0}
    trained, validated = part(source, "train", **rule), part(source, "validation", **rule)
    assert len(trained) + len(validated) == 100
    assert 10 <= len(validated) <= 30
    assert part(source, "test", **rule) == {"test/a"}


def test_a_column_that_is_not_kept_is_a_mistake() -> None:
    with pytest.raises(UserError, match="expected hash, folder or a column of input.keep, got 'fold'"):
        list(SubsetSource(Listed(["a"]), Subset(part="train", by="fold")).refs())


def test_an_empty_part_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image belongs to test by hash"):
        list(SubsetSource(Listed(["a"]), Subset(part="test", test=0.0)).refs())


@given(keys, shares, st.integers(0, 3), st.sampled_from([None, 1, 3]), st.sampled_from([2, 5]))
def test_each_training_image_validates_in_one_fold(
    names: set[str], test: float, seed: int, per_class: int | None, folds: int
) -> None:
    source = Listed(sorted(names))
    rule = {"test": test, "seed": seed, "per_class": per_class}
    kept = part(source, "train", validation=0.0, **rule)
    validated = Counter[str]()
    for fold in range(folds):
        cut = rule | {"folds": folds, "fold": fold}
        train, validation = part(source, "train", **cut), part(source, "validation", **cut)
        assert not train & validation
        assert train | validation == kept
        assert part(source, "test", **cut) == names - kept
        validated.update(validation)
    assert validated == Counter(kept)


def test_parts_of_one_picture_validate_in_the_same_fold() -> None:
    refs = [
        ImageRef(f"{picture}.jpg#{number}", "", columns={"image": f"{picture}.jpg", "box": None})
        for picture in range(50)
        for number in range(3)
    ]
    folds = [fold_of(ref, 5) for ref in refs]
    assert folds[0::3] == folds[1::3] == folds[2::3]
    assert set(folds) == set(range(5))


def test_a_fold_is_one_of_the_folds() -> None:
    with pytest.raises(ValueError, match="expected fold to be below folds, got fold 5 of 5"):
        Subset(fold=5, folds=5)


def test_only_some_classes_are_read_as_if_there_were_no_others() -> None:
    source = OfClasses(Listed(["a1", "b1", "c1", "a2"]), ("a", "c"))
    assert [ref.key for ref in source.refs()] == ["a1", "c1", "a2"]
    with pytest.raises(UserError, match=r"input\.classes: no image is one of d"):
        list(OfClasses(Listed(["a1"]), ("d",)).refs())


# By order


SEQUENCES = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 99)), min_size=1, unique=True)
ORDERED = st.sampled_from(["block", "turn"])


def frames(some: list[tuple[str, int]], between: str = "/") -> list[str]:
    return sorted(f"{film}{between}{number:02}" for film, number in some)


@given(SEQUENCES, ORDERED, shares, shares, st.sampled_from([None, 2, 3]))
def test_by_order_each_image_belongs_to_one_part_and_one_fold(
    some: list[tuple[str, int]], cut: str, validation: float, test: float, folds: int | None
) -> None:
    source, rule = Listed(frames(some)), {"cut": cut, "validation": validation, "test": test}
    found = [part(source, one, **rule) for one in ("train", "validation", "test")]
    assert set.union(*found) == set(source.keys)
    assert sum(map(len, found)) == len(source.keys)
    if folds is not None:
        validated = [part(source, "validation", **rule, folds=folds, fold=fold) for fold in range(folds)]
        assert set.union(*validated) == found[0] | found[1]
        assert sum(map(len, validated)) == len(found[0] | found[1])
        assert all(part(source, "test", **rule, folds=folds, fold=fold) == found[2] for fold in range(folds))


@given(SEQUENCES, shares, shares)
def test_blocks_are_the_ends_of_each_sequence(
    some: list[tuple[str, int]], validation: float, test: float
) -> None:
    source, rule = Listed(frames(some)), {"cut": "block", "validation": validation, "test": test}
    found = {name: part(source, name, **rule) for name in ("train", "validation", "test")}
    for film in {name for name, _ in some}:
        mine = [key for key in source.keys if key.startswith(film)]
        of = [next(name for name in found if key in found[name]) for key in mine]
        assert of == sorted(of, key=["train", "validation", "test"].index)
        assert of.count("test") == round(len(mine) * test)
        assert of.count("validation") == round(len(mine) * validation)


@given(SEQUENCES, st.sampled_from([2, 3]))
def test_a_fold_is_a_block_of_each_sequence(some: list[tuple[str, int]], folds: int) -> None:
    source = Listed(frames(some, "_"))
    rule = {"cut": "block", "group": "(.)_", "test": 0.0, "folds": folds}
    for film in {name for name, _ in some}:
        mine = [key for key in source.keys if key.startswith(film)]
        of = [
            next(fold for fold in range(folds) if key in part(source, "validation", **rule, fold=fold))
            for key in mine
        ]
        assert of == sorted(of)
        assert max(map(of.count, range(folds))) - min(map(of.count, range(folds))) <= 1


@given(SEQUENCES, shares, shares, st.sampled_from([2, 3]))
def test_by_hash_a_group_is_in_one_part_and_one_fold(
    some: list[tuple[str, int]], validation: float, test: float, folds: int
) -> None:
    source = Listed(frames(some, "_"))
    rule = {"group": "(.)_", "validation": validation, "test": test}
    cuts = [
        [part(source, one, **rule) for one in ("train", "validation", "test")],
        [part(source, "validation", **rule | {"test": 0.0}, folds=folds, fold=fold) for fold in range(folds)],
    ]
    for found in cuts:
        assert set.union(*found) == set(source.keys)
        films = [{key[0] for key in one} for one in found]
        assert sum(map(len, films)) == len(set.union(*films))


def test_every_fifth_tests() -> None:
    source = Listed(f"{number:03}" for number in range(500))
    rule = {"cut": "turn", "validation": 0.1, "test": 0.2}
    assert part(source, "test", **rule) == {f"{number:03}" for number in range(4, 500, 5)}
    kept = sorted(part(source, "train", **rule) | part(source, "validation", **rule))
    assert sorted(part(source, "validation", **rule)) == kept[7::8]


@given(SEQUENCES, ORDERED, st.data())
def test_by_order_a_listing_goes_on_where_it_ended(
    some: list[tuple[str, int]], cut: str, data: st.DataObject
) -> None:
    rule = Subset.model_validate({"cut": cut, "validation": 0.3, "test": 0.0})
    source = SubsetSource(Listed(frames(some)), rule)
    try:
        refs = list(source.refs())
    except UserError:
        return
    last = data.draw(st.integers(0, len(refs) - 1))
    assert list(source.refs(refs[last])) == refs[last + 1 :]
    with pytest.raises(UserError, match="no longer holds 'z', behind which"):
        list(source.refs(ImageRef("z", "z")))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"group": r"(\d+)_"}, "does not match the key 'a'"),
        ({"cut": "block", "group": r"(\d+)_"}, "does not match the key 'a'"),
        ({"cut": "block", "group": "("}, "input.subset.group: '\\(' is no regular expression"),
    ],
)
def test_what_can_not_be_cut_so_is_said(rule: dict[str, str], words: str) -> None:
    with pytest.raises((UserError, ValueError), match=words):
        list(SubsetSource(Listed(["a"]), Subset.model_validate(rule)).refs())


classes = st.lists(st.sampled_from("abcdefghijkl"), min_size=1, max_size=40)


@given(classes, shares, shares, st.integers(0, 3), st.sampled_from([None, 2, 3]))
def test_a_class_stays_whole(
    letters: list[str], validation: float, test: float, seed: int, folds: int | None
) -> None:
    source = Listed(f"{letter}{place:02}" for place, letter in enumerate(letters))
    rule = {"validation": validation, "test": test, "seed": seed, "folds": folds, "whole_classes": True}
    cuts = [rule] if folds is None else [rule | {"fold": fold} for fold in range(folds)]
    validated = Counter[str]()
    for cut in cuts:
        parts = {name: part(source, name, **cut) for name in ("train", "validation", "test")}
        assert set().union(*parts.values()) == set(source.keys)
        of = {name: {key[0] for key in found} for name, found in parts.items()}
        assert sum(map(len, of.values())) == len({*letters})
        assert len(of["test"]) == round(len({*letters}) * test)
        validated.update(of["validation"])
        tested = of["test"]
    if folds is not None:
        assert {*validated} == {*letters} - tested
        assert set(validated.values()) <= {1}


@pytest.mark.parametrize("other", [{"cut": "block"}, {"group": "(.)"}, {"per_class": 3}])
def test_whole_classes_are_cut_by_hash_alone(other: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"expected no {next(iter(other))} beside whole_classes"):
        Subset.model_validate({"whole_classes": True, **other})
