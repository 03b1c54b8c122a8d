"""A trained model as files: ``model.safetensors`` and ``model.json``, written by a training, read by any job.

``model.json`` is written last: where it is there, the weights are whole. It is data that may come from
anywhere, so every field is checked before it is used, and it names no code (`config.plugins`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from cnnbatch.config import yaml
from cnnbatch.config.mistakes import Sentences
from cnnbatch.errors import UserError
from cnnbatch.storage import (
    Forbidden,
    NotFound,
    Storage,
    TooLarge,
    Unreadable,
    join,
    normalize,
    redact,
    scheme,
)
from cnnbatch.storage.text import decoded

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "model.safetensors"
ABOUT = "model.json"

_WITHOUT_FOLDERS = ("", "package", "dataset")  # Schemes of which no address is a trained folder's.
_MOST_BYTES = 64 << 20
_MOST_SIDE = 8192  # pixels; far above what networks are made for, and of bounded memory

_Text = Annotated[str, Field(min_length=1, max_length=10_000)]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Interval = Annotated[tuple[_Number, _Number], Field(strict=False)]

TrainedSide = Annotated[int, Field(ge=1, le=_MOST_SIDE)]
TrainedSize = Annotated[tuple[TrainedSide, TrainedSide], Field(strict=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
TrainedColour = Annotated[tuple[_Number, _Number, _Number], Field(strict=False)]
TrainedDeviations = Annotated[tuple[_Positive, _Positive, _Positive], Field(strict=False)]


class TrainedInput(BaseModel):
    """What ``preprocessing`` in ``model.json`` has to say for a task: how the network's inputs are made."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class _Open(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="allow")


class _Architecture(_Open):
    task: _Text
    model: _Text
    library: str = ""
    features: _Text | None = None


class _Depth(_Open):
    block: str
    probe: _Number


class _Data(_Open):
    train: int
    validation: int


class _Validation(_Open):
    """The numbers of the best epoch, ``of`` being the name of the one by which it is the best."""

    of: str
    interval: _Interval | None = None

    @model_validator(mode="after")
    def _has_its_number(self) -> Self:
        if not isinstance((self.model_extra or {}).get(self.of), int | float):
            raise ValueError(f"expected a number called {self.of[:100]!r}, as of says")
        return self


class _About(_Open):
    """What other jobs, reports and studies read of ``model.json``; what else is in it is for people."""

    architecture: _Architecture
    preprocessing: dict[str, Any]
    classes: Annotated[tuple[_Text, ...], Field(strict=False, min_length=1)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    strategy: str = ""
    why: str = ""
    figures: dict[str, _Number] = {}
    depths: Annotated[tuple[_Depth, ...], Field(strict=False)] = ()
    validation: _Validation | None = None
    failed: dict[str, int] = {}
    epochs: Annotated[tuple[dict[str, Any], ...], Field(strict=False)] = ()
    learning_rate: _Number | None = None
    data: _Data | None = None


def put_model(storage: Storage, folder: str, learned: Learned) -> None:
    """Write a trained model into a folder."""
    from safetensors.torch import save

    data = save({name: tensor.contiguous() for name, tensor in learned.state.items()})
    storage.put(join(folder, WEIGHTS), data)
    about = {
        "architecture": dict(learned.architecture),
        "preprocessing": dict(learned.preprocessing),
        "classes": list(learned.classes),
        "sha256": hashlib.sha256(data).hexdigest(),
        **learned.about,
    }
    storage.put(join(folder, ABOUT), json.dumps(about, indent=1).encode())


def read_model(place: str, storage: Storage | None = None) -> dict[str, Any] | None:
    """Return what ``model.json`` in a folder at any URL says; None where there is none.

    Raises:
        UserError: it can't be read, or is not as a training writes it.
    """
    named = "/" not in place and "\\" not in place and not place.startswith(".")
    if named and not os.path.isdir(place):  # The name of a model, which is no folder here.
        return None
    file = join(normalize(place), ABOUT)
    try:
        data = (storage or Storage()).read(file, limit=_MOST_BYTES)
    except NotFound:
        return None
    except TooLarge:
        raise _not_a_model(file, f"is larger than {_MOST_BYTES >> 20} MiB") from None
    except (Forbidden, Unreadable) as error:
        raise _not_a_model(file, f"cannot be read: {error}") from None
    return _checked(_parsed(data, file), _About, file)


def may_be_folder(weights: str) -> bool:
    """Say whether weights may be a folder's address: names and files have none of a folder's marks."""
    if scheme(weights) in _WITHOUT_FOLDERS:
        return scheme(weights) == "" and os.path.isdir(normalize(weights))
    return "?" not in weights and not PurePosixPath(weights).suffix and weights.count(":") == 1


def _parsed(data: bytes, file: str) -> Mapping[str, Any]:
    try:
        found = json.loads(decoded(data), object_pairs_hook=_once)
        json.dumps(found, ensure_ascii=False).encode()  # Not of half a surrogate pair, which JSON can hold.
    except RecursionError:
        raise _not_a_model(file, "is nested too deeply") from None
    except ValueError as error:  # Also what is no text, and numbers of thousands of digits.
        raise _not_a_model(file, f"is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise _not_a_model(file, f"holds {type(found).__name__}, expected an object with names")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))
        raise ValueError(f"the name {twice[:100]!r} comes twice in one object")
    return found


def require_trained(about: Mapping[str, Any], task: str, input: type[TrainedInput], place: str) -> None:
    """Insist on a model that was trained for ``task``, whose ``preprocessing`` is that task's ``input``."""
    made_for = about["architecture"]["task"]
    if made_for != task:
        raise UserError(f"task.model: {redact(place)} was trained to {made_for}, expected one for {task}")
    kind = create_model("_AboutTask", __base__=_About, preprocessing=(input, ...))
    _checked(about, kind, join(normalize(place), ABOUT))


def _checked(found: Mapping[str, Any], kind: type[_About], file: str) -> dict[str, Any]:
    """Return what was read, as it is: its types are those that were expected."""
    try:
        kind.model_validate(found)
    except ValidationError as error:
        sentences = Sentences(yaml.Document("", {}, {}), (), found, kind.model_json_schema())
        found_wrong = sentences.by_path(error.errors(include_url=False))[:3]
        mistakes = "; ".join(words.partition("; write it in the file")[0] for words in found_wrong)
        raise _not_a_model(file, f"is not as a training writes it: {mistakes}") from None
    twice = len(found["classes"]) - len(set(found["classes"]))
    if twice:
        raise _not_a_model(file, f"is not as a training writes it: {twice} of its classes are there twice")
    return dict(found)


def _not_a_model(file: str, what: str) -> UserError:
    return UserError(
        f"{redact(file)} {what}\n"
        "  what to do: give the folder of a training as it was written, or train again"
    )


@dataclass(frozen=True, slots=True)
class Learned:
    """What a trained module is to other jobs: the fields of ``model.json``, and its state."""

    architecture: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    classes: Sequence[str]
    state: Mapping[str, Tensor]
    about: Mapping[str, Any] = field(default_factory=dict)
