"""Truth as data: the table that every source gives, in the columns and types of the predictions.

One type for objects, whatever a source knows of them: what it does not know is null, which costs
nothing in Parquet, and readers need not ask.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cnnbatch.errors import UserError
from cnnbatch.humanize import nearest

BOX = pa.struct([(side, pa.float64()) for side in ("x1", "y1", "x2", "y2")])
"""Pixels of the upright original; x2 - x1 is the width. 64 bits: COCO's sums must not round."""

MASK = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
"""COCO's compressed run lengths; ``size`` is (height, width)."""

KEYPOINT = pa.struct([("x", pa.float64()), ("y", pa.float64()), ("visibility", pa.float32())])
"""In truth ``visibility`` is COCO's: 0 not labelled, 1 hidden, 2 visible."""

_SIGMAS = b"sigmas"


def keypoints_field(sigmas: Sequence[float] = ()) -> pa.Field[Any]:
    """Return the field of an object's keypoints; ``sigmas`` say how far each may be off, where not COCO's do.

    They are kept in the field's metadata, as a JSON list.
    """
    kept = {_SIGMAS: json.dumps([*sigmas]).encode()} if sigmas else None
    return pa.field("keypoints", pa.list_(KEYPOINT), metadata=kept)


def sigmas_of(objects: pa.DataType) -> tuple[float, ...]:
    """Return the sigmas in the type of an object; none where it says none."""
    fields: Any = objects
    kept = fields.field("keypoints").metadata if fields.get_field_index("keypoints") >= 0 else None
    return tuple(json.loads((kept or {}).get(_SIGMAS, b"[]")))


_OBJECT: list[pa.Field[Any]] = [
    pa.field("label", pa.string()),
    pa.field("score", pa.float32()),
    pa.field("box", BOX),
    pa.field("mask", MASK),
    pa.field("keypoints", pa.list_(KEYPOINT)),
    pa.field("crowd", pa.bool_()),
    pa.field("area", pa.float64()),
    pa.field("difficult", pa.bool_()),
    pa.field("ignore", pa.bool_()),
    pa.field("is_thing", pa.bool_()),
]
OBJECTS = pa.list_(pa.struct(_OBJECT))
"""``is_thing`` is false of stuff, such as sky, where a truth is panoptic; null elsewhere."""

_LABEL: list[pa.Field[Any]] = [pa.field("image_id", pa.string()), pa.field("label", pa.string())]
_SIZED: list[pa.Field[Any]] = [
    pa.field("image_id", pa.string()),
    pa.field("objects", OBJECTS),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("problem", pa.string()),
]
LABEL_SCHEMA = pa.schema(_LABEL)
"""One class an image."""

OBJECTS_SCHEMA = pa.schema(_SIZED)
"""Objects an image, null where the image has no truth; ``width`` and ``height`` as the truth states them."""

MAP = pa.large_binary()
"""A number for every pixel, as a PNG file of one value a pixel; see `images.class_map`."""

MAP_RUNS = pa.list_(pa.struct([("class", pa.int32()), ("mask", MASK)]))
"""The same as a mask for each class."""

MAP_CLASSES = pa.list_(pa.struct([("label", pa.string()), ("pixels", pa.int64()), ("share", pa.float64())]))
"""How much of an image each class has, the largest first; ``share`` is of all pixels."""

_MAPPED: list[pa.Field[Any]] = [
    pa.field("image_id", pa.string()),
    pa.field("map", MAP),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("problem", pa.string()),
]
MAP_SCHEMA = pa.schema(_MAPPED)
"""A class for every pixel: numbers of a map are ids of its `classes_of`, or among its `ignored_of`."""

_FIELDS = frozenset(one.name for one in _OBJECT)
_ABOUT = frozenset({"image_id", "width", "height", "problem"})
"""Columns of a ground truth that are about the image, not about what is true of it."""

SURE = 0.5
"""The score from which on a predicted object counts as found, where a person does not say another."""

NO_TRUTH = "none"
"""What ``input.truth`` says where the ground truth that lies in the input is to be left out."""

OBJECT_LABEL = "object_label"
"""The column that repeats what an earlier job called an object: a prediction, and so no ground truth."""

_CLASSES = b"classes"
_IGNORED = b"ignored"
_SHOWN = 100  # of a model's names, in a message
_FEW = 20  # of names that it does not know
_OTHER_SIZE = " pixels, the image has "
_PARTLY = re.compile(r"(\d+) of its (\w+) (?:is|are) left out: (.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Class:
    """A class with the number or name that its source knows it by."""

    name: str
    id: int | str


def with_classes(schema: pa.Schema, classes: Sequence[Class]) -> pa.Schema:
    """Return ``schema`` with its ordered classes in its metadata, beside what that has of other things."""
    named = {_CLASSES: json.dumps([[one.name, one.id] for one in classes]).encode()}
    return schema.with_metadata({**(schema.metadata or {}), **named})


def with_ignored(schema: pa.Schema, numbers: Collection[int]) -> pa.Schema:
    """Return the schema of maps with the numbers in its metadata whose pixels do not count."""
    return schema.with_metadata({**(schema.metadata or {}), _IGNORED: json.dumps(sorted(numbers)).encode()})


def ignored_of(schema: pa.Schema) -> frozenset[int]:
    """Return the numbers of maps whose pixels do not count."""
    return frozenset(json.loads((schema.metadata or {}).get(_IGNORED, b"[]")))


def classes_of(schema: pa.Schema) -> tuple[Class, ...]:
    """Return the ordered classes in the metadata of a truth's schema; none where they are not known."""
    kept = (schema.metadata or {}).get(_CLASSES, b"[]")
    return tuple(Class(name, number) for name, number in json.loads(kept))


def answer_of(truth: pa.Schema) -> str:
    """Return the kind of answer that a ground truth is of, which is the name of its column: ``label``, say.

    Raises ValueError where it has no such column, or several.
    """
    found = [name for name in truth.names if name not in _ABOUT]
    if len(found) != 1:
        raise ValueError(
            f"expected one column with what is true of an image, got {', '.join(found) or 'none'}"
        )
    return found[0]


def with_new_fields(truth: pa.Table) -> pa.Table:
    """Return a ground truth of an earlier version with the fields that objects have had since, all null."""
    place = truth.schema.get_field_index("objects")
    if place < 0 or truth.schema.field(place).type == OBJECTS:
        return truth
    earlier: Any = truth.schema.field(place).type
    if not pa.types.is_list(earlier) or not {one.name for one in earlier.value_type} <= _FIELDS:
        return truth
    return truth.cast(truth.schema.set(place, pa.field("objects", OBJECTS)))


def table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows of a truth's columns as a table; what a row lacks is null."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema)


def object_labels(truth: pa.Table) -> list[str]:
    """Return the labels of all objects of a truth, each once."""
    objects: Any = pc.list_flatten(truth["objects"])
    labels = pc.struct_field(objects, "label").unique().to_pylist()
    return [label for label in labels if label is not None]


def renamed(
    objects: pa.ListArray[Any], names: Mapping[str, str | None]
) -> tuple[pa.ListArray[Any], Counter[str]]:
    """Return the objects with other names for their labels, and how many were left out, by label.

    ``objects`` is a column of type `OBJECTS`; a label that ``names`` lead to None is left out, one that they
    lack stays.
    """
    flat: Any = pc.list_flatten(objects)
    coded: Any = pc.struct_field(flat, "label").dictionary_encode()
    old = coded.dictionary.to_pylist()
    new: Any = pa.array([names.get(label, label) for label in old], pa.string())
    gone: Any = pa.array([label is not None and names.get(label, label) is None for label in old], pa.bool_())
    left_out: Any = pc.fill_null(gone.take(coded.indices), False)
    labels = new.take(coded.indices)
    fields = list(flat.type)
    columns = [labels if one.name == "label" else pc.struct_field(flat, one.name) for one in fields]
    kept = pc.invert(left_out)
    structs: Any = pa.StructArray.from_arrays(columns, fields=fields).filter(kept)
    parents = pc.list_parent_indices(objects).filter(kept).to_numpy(zero_copy_only=False)
    counts = np.bincount(parents.astype(np.int64), minlength=len(objects))
    ends: Any = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    lists: Any = pa.ListArray.from_arrays(ends, structs, mask=objects.is_null())
    return lists, Counter(pc.struct_field(flat, "label").filter(left_out).to_pylist())


def check_sizes(truth: pa.Table, sizes: Sequence[tuple[int, int] | None]) -> pa.Table:
    """Leave out the answers for images whose truth or masks are of another size, and say so in ``problem``.

    ``sizes`` are the (width, height) found, None where an image could not be read. Another kind of ground
    truth stays as it is.
    """
    names = set(truth.schema.names)
    if not (names.issuperset(OBJECTS_SCHEMA.names) or names.issuperset(MAP_SCHEMA.names)):
        return truth
    answer = answer_of(truth.schema)
    stated = zip(truth["width"].to_pylist(), truth["height"].to_pylist(), strict=True)
    problems = [
        _problem("its ground truth", width, height, found)
        or (mask and _problem("one of its masks", *mask[::-1], found))
        for (width, height), found, mask in zip(stated, sizes, _mask_sizes(truth[answer], sizes), strict=True)
    ]
    if not any(problems):
        return truth
    left_out = f"its {answer} {'are' if answer.endswith('s') else 'is'} left out"
    rows = [
        {**row, answer: None, "problem": f"{problem}; {left_out}"} if problem else row
        for row, problem in zip(truth.to_pylist(), problems, strict=True)
    ]
    return table(rows, truth.schema)


def _problem(what: str, width: int | None, height: int | None, found: tuple[int, int] | None) -> str | None:
    if not found or not width or not height or (width, height) == found:
        return None
    return f"{what} is for {width} x {height}{_OTHER_SIZE}{found[0]} x {found[1]}"


def partly(count: int, things: str, reason: str) -> str:
    """Return the ``problem`` of an image of whose truth ``things``, such as polygons, are left out."""
    return f"{count} of its {things} {'is' if count == 1 else 'are'} left out: {reason}"


def is_partly(problem: str | None) -> bool:
    """Say whether a ``problem`` of an image's truth is one of `partly`: the rest of it can be used."""
    return _PARTLY.fullmatch(problem or "") is not None


def left_out_of(problem: str) -> tuple[str, int]:
    """Return what of an image's truth is left out, by a ``problem`` of `partly`, and how much."""
    found = _PARTLY.fullmatch(problem)
    if found is None:
        return problem, 1
    return f"{found[2]} of the truth that are left out: {found[3]}", int(found[1])


def has_other_size(problem: str) -> bool:
    """Say whether a ``problem`` of an image's truth is that of another size."""
    return _OTHER_SIZE in problem


def _mask_sizes(
    answers: pa.ChunkedArray[Any], sizes: Sequence[tuple[int, int] | None]
) -> list[tuple[int, int] | None]:
    """Return for each image the (height, width) of a mask that is not the image's, None where all are."""
    wrong: list[tuple[int, int] | None] = [None] * len(sizes)
    if answers.type != OBJECTS:
        return wrong
    objects: Any = answers.combine_chunks()
    masks: Any = pc.struct_field(pc.list_flatten(objects), "mask")
    there = masks.is_valid()
    images = pc.list_parent_indices(objects).filter(there).to_pylist()
    shapes = pc.struct_field(masks.filter(there), "size").to_pylist()
    for image, (height, width) in zip(images, shapes, strict=True):
        found = sizes[image]
        if found is not None and found != (width, height):
            wrong[image] = (height, width)
    return wrong


NO_CLASS = frozenset({"", "__background__", "N/A", "no person"})
"""Names in the places of a network's outputs that stand for no class, as torchvision has them."""

BACKGROUND = frozenset({"__background__", "background"})
"""What models call the class of the pixels that are in no object."""


@dataclass(frozen=True, slots=True)
class ModelClasses:
    """A model's classes: ``names`` and, of its data set, ``ids`` in the same order; an empty name is none.

    ``aliases`` lead from its names to those of that data set, where they differ. ``maps`` is how many of the
    names, the first, are those of maps, where a model has others besides; 0: all are.
    """

    names: Sequence[str]
    ids: Sequence[int] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    maps: int = 0

    def by_name(self) -> dict[str, str]:
        """Return the model's name of every name that it or its data set has for a class."""
        own = {name: name for name in self.names if name}
        return {**{theirs: ours for ours, theirs in self.aliases.items()}, **own}

    def by_id(self, truth: Sequence[Class]) -> dict[int | str, str]:
        """Return the model's name by id; nothing unless ``truth`` is plainly numbered as the model is.

        Half of either's classes have to be alike, but for names that stand for none: in a file of two classes
        ``person`` may be 1 by chance.
        """
        known = self.by_name()
        ours: dict[int | str, str] = {
            number: name for number, name in zip(self.ids, self.names, strict=False) if name
        }
        same = sum(one.id in ours and known.get(one.name) == ours[one.id] for one in truth)
        classes = sum(name not in NO_CLASS for name in ours.values())
        return ours if 2 * same >= max(len(truth), classes) else {}


def match_classes(
    model: ModelClasses,
    truth: Sequence[Class],
    given: Mapping[str, str | None],
    occurring: Collection[str] | None = None,
) -> dict[str, str | None]:
    """Return for each class of the truth the model's name of it; None where the job leaves it out.

    ``given`` leads from the truth's names to the model's and wins; then the name counts, then the id where
    at least half of the classes of either are numbered alike. ``occurring`` are the names that something
    has, None where that is all of them; another class that the model does not know is left out.

    Raises:
        UserError: a class of the truth that occurs is none of the model's; it names the nearest.
    """
    by_name, by_id = model.by_name(), model.by_id(truth)
    wanted = {one.name: given.get(one.name, one.name) for one in truth}
    ids = {one.name: by_id.get(one.id) for one in truth if one.name not in given}
    found = {
        name: None if want is None else by_name.get(want, ids.get(name)) for name, want in wanted.items()
    }
    lacking = {name: want for name, want in wanted.items() if want is not None and found[name] is None}
    if unknown := {name: want for name, want in lacking.items() if occurring is None or name in occurring}:
        raise _unknown(unknown, by_name)
    return {name: ours for name, ours in found.items() if name not in lacking}


def no_known_label(model: ModelClasses, labels: Sequence[str]) -> UserError:
    """Return what to raise where no image has a label that the model can give."""
    known = model.by_name()
    near = next(((label, name) for label in labels[:_FEW] if (name := nearest(label, known))), None)
    hint = "" if near is None else f", as {near[1]!r} instead of {near[0]!r}"
    return UserError(
        f"none of the labels of the ground truth is a class of the model: {_some(labels, most=_FEW)}\n"
        f"  the model's: {_some([*dict.fromkeys(known.values())])}\n"
        f"  what to do: give labels by the model's names{hint}, or leave the ground truth out "
        f"(input.truth={NO_TRUTH})"
    )


def match_map_classes(
    model: ModelClasses, truth: Sequence[Class], given: Mapping[str, str | None]
) -> dict[str, str | None]:
    """Return for each class of maps the model's name of it; None where the job leaves it out.

    As `match_classes`, but a class that the model does not know is left out.

    Raises:
        UserError: the model knows none of them, or not what ``given`` calls one.
    """
    found = match_classes(model, truth, given, given.keys())
    if any(found.values()):
        return found
    known = model.by_name()
    names = [one.name for one in truth]
    if all(one.name == str(one.id) for one in truth):
        raise _unnamed(list(dict.fromkeys(known.values())))
    near = next(((name, ours) for name in names[:_FEW] if (ours := nearest(name, known))), None)
    hint = "{{{}: {}}}".format(*near) if near else "{TRUTH: MODEL}"
    raise UserError(
        f"none of the classes of the ground truth's maps is one of the model: {_some(names, most=_FEW)}\n"
        f"  the model's: {_some([*dict.fromkeys(known.values())])}\n"
        "  what to do: name the classes in classes.txt beside the masks, say in task.aliases what each is "
        f"called there, as in 'task.aliases={hint}', or leave the ground truth out (input.truth={NO_TRUTH})"
    )


def _unnamed(ours: Sequence[str]) -> UserError:
    """Return what to raise for maps whose numbers have no names; ``ours`` are the model's classes."""
    example = ", ".join(f"{number}: {name}" for number, name in enumerate(ours[:2]))
    return UserError(
        "the values of the masks have no names, so which of the model's classes they are is not known\n"
        f"  the model's: {_some(ours)}\n"
        "  what to do: name them in classes.txt beside the masks, a line each from the value 0 on, or say "
        f"'input.relabel={{{example}}}' and so on, or leave the ground truth out (input.truth={NO_TRUTH})"
    )


def _some(names: Sequence[str], count: int | None = None, most: int = _SHOWN) -> str:
    """Return the first of some names, and how many more there are of ``count`` in all."""
    more = (len(names) if count is None else count) - len(names[:most])
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def _unknown(lacking: Mapping[str, str], known: Mapping[str, str]) -> UserError:
    """Name the truth's classes, what the job called them where it did, and what comes nearest."""
    shown = []
    for name, want in islice(lacking.items(), _FEW):
        called = "" if want == name else f", called {want!r} in task.aliases"
        near = nearest(want, known)
        shown.append(repr(name) + called + (f" (the nearest: {near!r})" if near else ""))
    return UserError(
        f"the truth has classes that the model does not know: {_some(shown, len(lacking))}\n"
        f"  the model's: {_some([*dict.fromkeys(known.values())])}\n"
        "  what to do: say in task.aliases what each is called there, or null to leave it out, as in "
        f"'task.aliases={{{next(iter(lacking))}: null}}'"
    )


def named_alike(classes: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Return the network's name of each class that it has, compared by letters and digits alone."""
    by_letters = {_letters(name): name for name in reversed(known)}
    return {name: by_letters[_letters(name)] for name in classes if _letters(name) in by_letters}


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))
