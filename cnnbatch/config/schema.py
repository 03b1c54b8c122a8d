"""Walks a JSON schema, as pydantic writes it: what may stand at a place of a job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]


def branches(schema: Schema, root: Schema) -> Iterator[Schema]:
    """Yield the alternatives that ``schema`` stands for, references into ``root`` followed."""
    if "$ref" in schema:
        yield from branches(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
        return
    inner = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]
    for branch in inner:
        yield from branches(branch, root)
    if not inner:
        yield schema


def inside(schema: Schema, part: str | int) -> Schema | None:
    """Return what may stand at a key, or at a place of a list, of one alternative; None for nothing."""
    if isinstance(part, int):
        fixed: Sequence[Any] = schema.get("prefixItems", ())
        found = fixed[part] if part < len(fixed) else schema.get("items")
    else:
        found = schema.get("properties", {}).get(part) or schema.get("additionalProperties")
    return found if isinstance(found, Mapping) else None


def at(path: Sequence[str | int], schema: Schema, root: Schema) -> Schema:
    """Return all that may stand at ``path`` below ``schema``, as alternatives; without any, it is unknown."""
    found: list[Schema] = [schema]
    for part in path:
        around = [branch for one in found for branch in branches(one, root)]
        found = [place for branch in around if (place := inside(branch, part)) is not None]
    return found[0] if len(found) == 1 else {"anyOf": found}


def is_text(branch: Schema) -> bool:
    """Say whether one alternative is any text, rather than one of a few words."""
    return branch.get("type") == "string" and not {"enum", "const"} & branch.keys()
