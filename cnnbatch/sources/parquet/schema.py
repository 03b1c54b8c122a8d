"""Which columns of a Parquet file hold what: images, keys, truth and what the job keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.types as kinds

from cnnbatch.errors import UserError
from cnnbatch.humanize import nearest
from cnnbatch.output.part import ENGINE_COLUMNS
from cnnbatch.sources.lists.source import _ADDRESS_NAMES, LABEL
from cnnbatch.sources.objects import FORMS, TRUTH, has_class, holds_objects

if TYPE_CHECKING:
    from cnnbatch.config.input import Input

EMBED = "write the bytes, too, as push_to_hub of the library datasets does"
"""What to do where Hugging Face's images have paths and no bytes."""

OBJECTS = "objects"
"""The column whose objects are the truth."""

_NAMES = "image img picture photo bytes image_bytes img_bytes jpg jpeg png webp data content"
_IMAGE_NAMES = tuple(_NAMES.split())
_SIZE = ("width", "height")


@dataclass(frozen=True)
class ParquetColumns:
    """The columns that a job reads, by the file's own names.

    ``image`` holds bytes, or where ``nested`` is set a struct with ``bytes``; ``names`` are the
    classes of numbers in ``label`` or ``objects``; ``size`` are the columns of width and height.
    """

    image: str
    nested: bool
    key: str | None = None
    label: str | None = None
    objects: str | None = None
    size: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None

    @property
    def listed(self) -> list[str]:
        """All columns but the image's, each once: what the listing reads."""
        single = (self.key, self.label, self.objects)
        return list(dict.fromkeys(name for name in (*single, *self.size, *self.keep) if name))

    @property
    def leaf(self) -> str:
        """The path of the bytes in the file."""
        return f"{self.image}.bytes" if self.nested else self.image

    @property
    def truth(self) -> str | None:
        """The column whose classes ``names`` are."""
        return self.objects or self.label


def choose(input: Input, schema: pa.Schema, where: str) -> ParquetColumns:
    """Match the job with a file's columns; every mistake says which columns there are."""
    for field, names in (("key", [input.key]), ("label", [input.label]), ("keep", list(input.keep))):
        for name in filter(None, names):
            _known(field, name, schema, where)
    image = image_column(schema, (input.key, input.label), where)
    if input.key is not None:
        kind = _plain(schema.field(input.key).type)
        _require(_is_key(kind), "key", "text or whole numbers", input.key, schema)
    label, objects = _truth(input, schema, where)
    keep = tuple(dict.fromkeys(input.keep))
    _check_keep(keep, image, label, objects, where)
    size = _SIZE if objects and all(_is_number(schema, name) for name in _SIZE) else ()
    nested = kinds.is_struct(schema.field(image).type)
    kept = tuple(name for name in keep if not name == label == LABEL)
    return ParquetColumns(
        image, nested, input.key, label, objects, size, kept, class_names(schema, objects or label)
    )


def image_column(schema: pa.Schema, used: Sequence[str | None], where: str) -> str:
    """Return the column of image bytes: by its name, else the only one there is."""
    found = [field.name for field in schema if holds_bytes(field.type) and field.name not in used]
    by_name = {name.lower(): name for name in found if schema.names.count(name) == 1}
    for name in _IMAGE_NAMES:
        if name in by_name:
            return by_name[name]
    if len(found) == 1:
        return found[0]
    came, mend = _without_one(schema, found)
    raise UserError(
        f"{where}: one column of image bytes was expected, named {', '.join(_IMAGE_NAMES[:4])} or the like; "
        f"{came}\n  what to do: {mend}"
    )


def _without_one(schema: pa.Schema, found: Sequence[str]) -> tuple[str, str]:
    """Say what there is in place of one column of image bytes, and what to do."""
    if found:
        return f"several have bytes: {', '.join(found)}", (
            f"rename the one that is meant to {_IMAGE_NAMES[0]}, or write a file for each"
        )
    if lists := [
        field.name for field in schema if _element(field.type) != field.type and _holds_lists(field)
    ]:
        return f"a row of {lists[0]} has a list of images: {schema.field(lists[0]).type}", (
            f"write a row for each image, as pandas' explode({lists[0]!r}) does"
        )
    if paths := [field.name for field in schema if _holds_paths(field.type)]:
        return f"{paths[0]} has paths alone: {schema.field(paths[0]).type}", (
            f"write those paths as a column of text and give input.format=list, or {EMBED}"
        )
    return f"its columns: {shown(schema)}", (
        "rename the column of the images; a file of addresses is read with input.format=list"
    )


def _holds_lists(field: pa.Field[Any]) -> bool:
    return holds_bytes(_element(field.type)) or _holds_paths(_element(field.type))


def _holds_paths(kind: pa.DataType) -> bool:
    """Say whether this is Hugging Face's image without its bytes."""
    return kinds.is_struct(kind) and any(field.name == "path" for field in kind)


def holds_images(schema: pa.Schema) -> bool:
    """Say whether a file is one of images, rather than a list of addresses with some bytes beside them."""
    try:
        name = image_column(schema, (), "")
    except UserError:  # of lists of images, and of paths alone, the source then says so
        odd = any(_holds_lists(field) or _holds_paths(field.type) for field in schema)
        return odd and not _has_addresses(schema)
    named = name.lower() in _IMAGE_NAMES or kinds.is_struct(schema.field(name).type)
    return named or not _has_addresses(schema)


def _has_addresses(schema: pa.Schema) -> bool:
    return any(field.name.lower() in _ADDRESS_NAMES and _is_text(field.type) for field in schema)


def holds_bytes(kind: pa.DataType) -> bool:
    """Say whether a column of this type can hold image files: bytes, or Hugging Face's {bytes, path}."""
    if kinds.is_struct(kind):
        return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
    plain = _plain(kind)
    return kinds.is_binary(plain) or kinds.is_large_binary(plain) or kinds.is_binary_view(plain)


def kept_type(schema: pa.Schema, name: str) -> pa.DataType:
    """Return the type in which a column is kept."""
    return _plain(schema.field(name).type)


def check_same(columns: ParquetColumns, first: pa.Schema, schema: pa.Schema, where: str) -> None:
    """Insist that a file has the columns of the first one, of the same types and classes."""
    for name in (columns.image, *columns.listed):
        expected = _comparable(first.field(name).type)
        if schema.names.count(name) != 1:
            raise _differs(where, name, str(expected), f"its columns: {shown(schema)}")
        came = _comparable(schema.field(name).type)
        # A column without any value is written without a type.
        if came != expected and not (kinds.is_null(came) and name not in (columns.image, columns.key)):
            raise _differs(where, name, str(expected), f"got {came}")
    names = class_names(schema, columns.truth)
    if names is not None and names != columns.names:
        classes = ", ".join(columns.names or ("numbers without names",))[:200]
        raise _differs(where, str(columns.truth), f"the classes {classes}", f"got {', '.join(names)[:200]}")


def class_names(schema: pa.Schema, column: str | None) -> tuple[str, ...] | None:
    """Return the classes that Hugging Face's metadata give the numbers of a column of labels or objects."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        feature = features[column]
        return _names_in(feature)
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def has_numbers(schema: pa.Schema, column: str | None) -> bool:
    """Say whether the classes of a column of labels or objects are whole numbers."""
    if column is None:
        return False
    fields = _object_fields(schema.field(column).type)
    kind = fields.get("label", fields.get("category")) if fields else schema.field(column).type
    return kind is not None and kinds.is_integer(_element(_plain(kind)))


def shown(schema: pa.Schema) -> str:
    """Return the columns with their types, for messages."""
    return ", ".join(f"{field.name} ({field.type})" for field in schema)[:500]


def _truth(input: Input, schema: pa.Schema, where: str) -> tuple[str | None, str | None]:
    """Return the columns of labels and of objects: the one that the job names, else what is called so."""
    if input.label is not None:
        kind = _plain(schema.field(input.label).type)
        _require(_is_label(kind), "label", "text or numbers", input.label, schema)
        return input.label, None
    fields = _object_fields(schema.field(OBJECTS).type) if schema.names.count(OBJECTS) == 1 else {}
    if holds_objects(fields):
        if not has_class(fields):
            raise UserError(
                f"{where}: the column {OBJECTS!r} has {', '.join(fields)}; expected {FORMS}\n"
                "  what to do: rename its fields, or the column, if it is not ground truth"
            )
        return None, OBJECTS
    labelled = schema.names.count(LABEL) == 1 and _is_label(_plain(schema.field(LABEL).type))
    return (LABEL if labelled else None), None


def _check_keep(keep: Sequence[str], image: str, label: str | None, objects: str | None, where: str) -> None:
    taken = {name: "a column that every row has already" for name in ENGINE_COLUMNS.names}
    taken[image] = "the column of the images themselves"
    if label not in (None, LABEL):
        taken[LABEL] = f"the name that the true class of {label!r} takes"
    if objects is not None:
        taken[TRUTH] = "the name that the true objects take"
    for name in keep:
        if name in taken:
            raise UserError(
                f"input.keep: {name!r} is {taken[name]}\n  what to do: leave it out, or rename it in {where}"
            )


def _known(field: str, name: str, schema: pa.Schema, where: str) -> None:
    count = schema.names.count(name)
    if count != 1:
        near = nearest(name, schema.names)
        hint = f"; did you mean {near!r}?" if near and not count else ""
        found = "two columns" if count else "no column"
        raise UserError(f"input.{field}: {where} has {found} {name!r}{hint}\n  its columns: {shown(schema)}")


def _require(holds: bool, field: str, expected: str, name: str, schema: pa.Schema) -> None:
    if not holds:
        raise UserError(
            f"input.{field}: {expected} was expected in the column {name!r}, got {schema.field(name).type}\n"
            "  what to do: name another column"
        )


def _object_fields(kind: pa.DataType) -> dict[str, pa.DataType]:
    """Return the fields of a list of structs, or of a struct of lists; none for other types."""
    if kinds.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        return fields if all(_element(one) != one for one in fields.values()) else {}
    inner = _element(kind)
    return {field.name: field.type for field in inner} if kinds.is_struct(inner) else {}


def _names_in(feature: Any) -> tuple[str, ...] | None:
    """Find the class names of a feature, whatever lists and structs of Hugging Face's it lies in."""
    if isinstance(feature, list):
        return _names_in(feature[0]) if feature else None
    if not isinstance(feature, Mapping):
        return None
    if feature.get("_type") == "ClassLabel":
        names = feature.get("names")
        return tuple(map(str, names)) if isinstance(names, list) else None
    for name in ("feature", "category", "label"):
        if name in feature:
            return _names_in(feature[name])
    return None


def _comparable(kind: pa.DataType) -> pa.DataType:
    """Return one type for those that hold the same values."""
    plain = _plain(kind)
    if kinds.is_large_string(plain) or kinds.is_string_view(plain):
        return pa.string()
    if holds_bytes(plain):
        return pa.struct([("bytes", pa.binary())]) if kinds.is_struct(plain) else pa.binary()
    return plain


def _differs(where: str, name: str, expected: str, came: str) -> UserError:
    return UserError(
        f"{where}, column {name!r}: expected as in the first file {expected}, {came}\n"
        "  what to do: write all files with one schema, or give a glob that leaves this one out"
    )


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if kinds.is_dictionary(kind) else kind


def _element(kind: pa.DataType) -> pa.DataType:
    """Return the type of a list's elements; any other type as it is."""
    return (
        kind.value_type if isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType) else kind
    )


def _is_text(kind: pa.DataType) -> bool:
    return _comparable(kind) == pa.string()


def _is_key(kind: pa.DataType) -> bool:
    return _is_text(kind) or kinds.is_integer(kind)


def _is_label(kind: pa.DataType) -> bool:
    return _is_key(kind) or kinds.is_floating(kind) or kinds.is_null(kind)


def _is_number(schema: pa.Schema, name: str) -> bool:
    return schema.names.count(name) == 1 and kinds.is_integer(schema.field(name).type)
