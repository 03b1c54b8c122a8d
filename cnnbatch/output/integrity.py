"""Checks what is read back from an output: what is damaged or of a newer version is named, with a way out.

Each record has its shape here, in one place; a record may hold more than that, for a later version's sake.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from typing import Annotated, Any, Literal, NotRequired

import pyarrow as pa
import yaml
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from cnnbatch.errors import UserError
from cnnbatch.storage import redact

PUT_BACK = "put it back as it was, or choose another output; finished parts are kept"
DELETE = "delete that file and give the same command again; finished parts are kept"
MAKE_AGAIN = "delete that file: the same command then makes it again, and keeps the other parts"
_EVALUATE = "cnnbatch evaluate with this output writes it anew"
_UNREADABLE = (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError)

_Positive = Annotated[int, Field(ge=1)]
_Natural = Annotated[int, Field(ge=0)]
_Fields = Annotated[dict[str, Any], Field(min_length=1)]
_Counts = dict[str, _Natural]
_Precision = Literal["fp32", "bf16", "fp16"]
_open = with_config(ConfigDict(extra="allow"))
_closed = with_config(ConfigDict(extra="forbid"))


def _time(text: str) -> str:
    datetime.fromisoformat(text)
    return text


@_open
class _Settled(TypedDict):
    precision: _Precision
    decoder: NotRequired[Literal["cpu", "cuda"]]


@_open
class _Settings(TypedDict):
    device: str
    precision: _Precision
    batch: NotRequired[_Positive | None]
    threads: NotRequired[_Positive]
    backend: NotRequired[Literal["eager", "compile", "openvino"] | None]
    tf32: NotRequired[bool | None]
    trials: list[dict[str, Any]]
    operators_on_cpu: list[str]


@_closed
class _Classes(TypedDict):
    names: list[str]
    ids: NotRequired[list[int]]
    aliases: NotRequired[dict[str, str]]
    maps: NotRequired[_Natural]


@_open
class _Listing(TypedDict):
    images: _Natural
    limit: NotRequired[int | None]
    sample: NotRequired[float]
    change_pages: NotRequired[_Natural]


@_open
class _Run(TypedDict):
    started: NotRequired[Annotated[str, AfterValidator(_time)]]
    images: _Natural
    failed: _Counts
    seconds: float
    found: NotRequired[_Counts]


@_open
class _Embedded(TypedDict):
    url: str
    storage: dict[str, Any]


@_closed
class _Secret(TypedDict):
    version: Literal[1]
    secret: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@_open
class _Unfinished(TypedDict):
    version: Literal[1]
    index: str


@_open
class _Failed(TypedDict):
    rows: _Natural
    failed: _Counts


@_open
class _Number(TypedDict):
    value: float | None
    low: float | None
    high: float | None


@_open
class _Trial(TypedDict):
    name: str
    case: str
    settings: dict[str, Any]
    run: int
    validation: dict[str, _Number]
    test: dict[str, _Number]
    error: str | None
    strategy: str | None
    wall_seconds: float


@_open
class _Data(TypedDict):
    classes: list[str]
    counts: _Counts
    train: _Natural
    validation: _Natural
    digest: str
    how: str
    listed: _Natural


@_closed
class _Strategy(TypedDict):
    strategy: Literal["as_is", "head", "last_blocks", "most_blocks", "all", "scratch"]
    why: str
    figures: dict[str, float | None]
    strong: bool
    features: str | None
    depths: list[dict[str, Any]]


@_open
class _Picture(TypedDict):
    name: str
    picture: str


@_open
class _Swatch(TypedDict):
    colour: str
    name: str


@_open
class _Strip(TypedDict):
    title: str
    text: str
    rows: list[list[_Picture]]
    legend: list[_Swatch]


@_open
class _State(TypedDict):
    epochs: int
    measured: float
    points: list[list[float]]


@_open
class _Vectors(TypedDict):
    classes: list[str]
    metric: str
    share: float
    states: list[_State]


@_open
class _Inside(TypedDict):
    pictures: list[str]
    layers: list[dict[str, Any]]
    strips: NotRequired[list[_Strip]]
    vectors: NotRequired[_Vectors | None]


@_open
class _Job(TypedDict):
    task: NotRequired[dict[str, Any]]
    input: NotRequired[dict[str, Any]]
    evaluate: NotRequired[dict[str, Any]]


@_closed
class _Value(TypedDict):
    value: float | None
    low: float | None
    high: float | None
    count: _Natural
    reason: NotRequired[str]


@_closed
class _Evaluation(TypedDict):
    task: str
    images: _Natural
    failed: _Natural
    truth: str
    metrics: dict[str, _Value]
    slices: NotRequired[dict[str, dict[str, dict[str, _Value]]]]
    notes: NotRequired[dict[str, int]]
    aliases: NotRequired[dict[str, str | None]]


@_open
class _JudgedBy(TypedDict):
    truth: str
    aliases: NotRequired[dict[str, str | None]]


_JOB: TypeAdapter[Any] = TypeAdapter(Annotated[_Job, Field(min_length=1)])
_OBJECT: TypeAdapter[Any] = TypeAdapter(dict[str, Any])
_SHAPES: Mapping[str, tuple[TypeAdapter[Any], str]] = {
    "begun": (TypeAdapter(_Fields), DELETE),
    "identity": (TypeAdapter(_Fields), PUT_BACK),
    "settings": (TypeAdapter(_Settled), DELETE),
    r"settings/.+": (TypeAdapter(_Settings), DELETE),
    "classes": (TypeAdapter(_Classes), PUT_BACK),
    r"plan/\d+/complete": (TypeAdapter(_Listing), DELETE),
    r"runs/.+": (TypeAdapter(_Run), DELETE),
    "failed": (TypeAdapter(_Failed), DELETE),
    "forgotten/secret": (TypeAdapter(_Secret), PUT_BACK),
    r"forgotten/unfinished-.+": (TypeAdapter(_Unfinished), PUT_BACK),
    "embedded": (TypeAdapter(_Embedded), DELETE),
    r"trials/.+": (TypeAdapter(_Trial), DELETE),
    "training/identity": (TypeAdapter(_Fields), PUT_BACK),
    "training/data": (TypeAdapter(_Data), DELETE),
    "training/strategy": (TypeAdapter(_Strategy), DELETE),
    "evaluation": (TypeAdapter(_Evaluation), _EVALUATE),
    "judged by": (TypeAdapter(_JudgedBy), _EVALUATE),
    "training/inside": (TypeAdapter(_Inside), DELETE),
}
"""By a pattern of the record's name its shape, and the way out where it is damaged."""


def record(name: str, uri: str, data: bytes) -> dict[str, Any]:
    """Return what the record ``name``, read from ``uri``, holds.

    Raises UserError where it is damaged, or says that a newer version of cnnbatch wrote it.
    """
    shape, way_out = next(
        (found for pattern, found in _SHAPES.items() if re.fullmatch(pattern, name)), (_OBJECT, DELETE)
    )
    try:
        value: dict[str, Any] = json.loads(data)
        require_known_version(uri, value)
        shape.validate_python(value, strict=True)
    except (ValueError, RecursionError) as error:
        raise damaged(uri, _why(data, error), way_out) from None
    return value


def job(uri: str, data: bytes) -> dict[str, Any]:
    """Return what ``_job/job.yaml``, read from ``uri``, says; raises UserError where it is damaged."""
    try:
        found: dict[str, Any] = yaml.safe_load(data.decode())
        _JOB.validate_python(found, strict=True)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise damaged(uri, _why(data, error), PUT_BACK) from None
    return found


class NewerVersion(UserError):
    """A newer version of cnnbatch wrote what was to be read."""


def require_known_version(uri: str, written: Any) -> None:
    """Refuse what a newer version of cnnbatch wrote, since this one may take it for something else.

    ``written`` is a record or a footer: it may say its version in the field ``cnnbatch``, at the top, among
    a study's ``fields``, or among the ``versions`` of a footer. Third numbers don't count: they change no
    format. Raises NewerVersion.
    """
    ours = version("cnnbatch")
    places = [written, *(written.get(name) for name in ("versions", "fields"))] if _is_map(written) else []
    for place in filter(_is_map, places):
        theirs = place.get("cnnbatch")
        if isinstance(theirs, str) and _release(theirs) > _release(ours):
            raise NewerVersion(
                f"{redact(uri)} was written by cnnbatch {theirs}, and this is cnnbatch {ours}, which may not "
                f"know what later versions write\n  what to do: install cnnbatch {theirs} or later here"
            )


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping)


def _release(text: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


@contextmanager
def reading(uri: str, way_out: str = PUT_BACK) -> Iterator[None]:
    """Turn what reading a damaged file raises into a UserError that names it; for reading alone."""
    try:
        yield
    except _UNREADABLE as error:
        raise damaged(uri, _why(b"-", error), way_out) from error


def damaged(uri: str, why: str, way_out: str) -> UserError:
    """Return the error for a file of an output that does not hold what was written there."""
    return UserError(f"{redact(uri)} is damaged: {why}\n  what to do: {way_out}")


def require_columns(schema: pa.Schema, expected: pa.Schema) -> None:
    """Raise ValueError where a table lacks one of the ``expected`` columns, or has it in another type."""
    for one in expected:
        if schema.names.count(one.name) != 1:
            raise ValueError(
                f"expected the columns {', '.join(expected.names)}, got {', '.join(schema.names)}"
            )
        if schema.field(one.name).type != one.type:
            raise ValueError(f"expected {one.name} of type {one.type}, got {schema.field(one.name).type}")


def _why(data: bytes, error: Exception) -> str:
    """Return in a line what is wrong."""
    if not data:
        return "it is empty"
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON: {error}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
