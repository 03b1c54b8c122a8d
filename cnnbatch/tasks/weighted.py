"""What tasks with one network share: its name, its weights and its classes, as fields of the job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import pyarrow as pa
from pydantic import ConfigDict, Field, model_validator

from cnnbatch.errors import UserError
from cnnbatch.models.trained_files import TrainedInput
from cnnbatch.storage import Storage, StorageOptions, normalize
from cnnbatch.storage.text import decoded
from cnnbatch.tasks import Task
from cnnbatch.types import Backend, Precision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cnnbatch.models import Choice

Side = Annotated[int, Field(ge=1, le=16_384)]
Size = Annotated[tuple[Side, Side], Field(strict=False)]
Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)]


class AnyInput(TrainedInput):
    """Whatever a training has written: it is the affair of the task."""

    model_config = ConfigDict(extra="allow")


class WeightedTask(Task):
    """A task of one network; see `cnnbatch.models.Choice`."""

    backends: ClassVar[frozenset[Backend]] = frozenset({"eager", "compile", "openvino"})
    precisions: ClassVar[frozenset[Precision]] = frozenset({"fp32", "bf16", "fp16"})
    outside_fingerprint: ClassVar[frozenset[str]] = frozenset({"storage"})
    trained_to: ClassVar[str] = ""
    """What a trained folder says that its model does, for this task to take it."""
    trained_input: ClassVar[type[TrainedInput]] = AnyInput
    """What it says of the network's inputs."""
    adapters: ClassVar[tuple[str, ...]] = ()
    """Conventions of ONNX files that the task reads; where there is one only, it need not be said."""

    model: str
    """A model's name (see ``cnnbatch models``), a trained folder, or ``mypackage.module:build``."""
    weights: str = "DEFAULT"
    """``DEFAULT`` or another published name, a path, a URL, ``package:NAME/PATH``, ``random[:SEED]``, or a
    trained folder."""
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = None
    """What the weights' file has to be."""
    classes: Names | str | None = None
    """The names of the classes in the network's order, or a file with one a line."""
    key_map: str | None = None
    """A JSON file from the names in the weights' file to the network's, or the name of a known one."""
    storage: StorageOptions = StorageOptions()
    """Options of the storage on which a trained folder or the weights lie, none of them secret."""
    adapter: str | None = None
    """With the model ``onnx``: by whose convention the ONNX file gives its outputs."""

    @model_validator(mode="after")
    def _adapter_is_of_onnx(self) -> Self:
        if self.adapter and self.model != "onnx":
            raise ValueError(
                f"adapter says how to read an ONNX file; expected task.model=onnx beside it, got {self.model}"
            )
        if self.model == "onnx" and not self.adapters:
            raise ValueError(f"{self.name} reads no ONNX files; expected another task.model than onnx")
        if self.model == "onnx" and not self.adapter and len(self.adapters) > 1:
            raise ValueError(
                f"expected task.adapter {', '.join(self.adapters[:-1])} or {self.adapters[-1]} beside "
                "task.model=onnx: by whose convention the file gives its outputs"
            )
        return self

    def chosen_classes(self) -> tuple[str, ...] | None:
        """Return the names in the job, or those in the file that it names."""
        return read_names(self.classes) if isinstance(self.classes, str) else self.classes

    def class_names(self) -> tuple[str, ...] | None:
        """Return the names in the job, else those in the trained folder that is the model."""
        return self.choice({}).classes

    def choice(self, preprocessing: Mapping[str, Any], trains: bool = False) -> Choice:
        """Return which network the job means; ``preprocessing`` replaces fields of what its weights ask for.

        With ``trains`` the weights may be the folder of a training of another architecture.

        Raises:
            UserError: the file of the classes can't be read, or a trained folder is none.
        """
        from cnnbatch.models import Choice
        from cnnbatch.models.trained import with_trained

        choice = Choice(
            model=self.model,
            weights=self.weights,
            sha256=self.sha256,
            classes=self.chosen_classes(),
            key_map=self.key_map,
            preprocessing=preprocessing,
            adapter=self.adapter,
            storage=Storage(self.storage),
        )
        return with_trained(choice, self.trained_to or self.name, self.trained_input, trains)


def read_names(uri: str) -> tuple[str, ...]:
    """Read class names from a text file, one a line."""
    from cnnbatch.storage import Forbidden, NotFound, Unreadable

    try:
        text = decoded(Storage().read(normalize(uri)))
    except (NotFound, Forbidden, Unreadable, UnicodeDecodeError) as error:
        raise UserError(
            f"task.classes: expected a list of names, or a text file with one a line; got {uri!r}, "
            f"which cannot be read: {error}"
        ) from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def lists_of(values: pa.Array[Any], lengths: Sequence[int]) -> pa.ListArray[Any]:
    """Cut ``values`` into lists of these lengths."""
    import numpy as np

    ends: Any = pa.array(np.cumsum([0, *lengths]), pa.int32())
    lists: pa.ListArray[Any] = pa.ListArray.from_arrays(ends, values)
    return lists
