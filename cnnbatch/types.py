"""The values that travel between the stages; nothing here imports torch or Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, get_args

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import Tensor

Stage = Literal["read", "decode", "prepare", "predict", "forget"]

Code = Literal[
    "not_found",  # the address names nothing
    "forbidden",  # this image alone may not be read
    "unreadable",  # its address answers with an error of its own
    "empty",  # zero bytes
    "undecodable",  # no decoder knows these bytes
    "truncated",  # the bytes end too early
    "too_large",  # more pixels or bytes than the limits allow
    "prepare",  # the model's own preparation refused it
    "predict",  # the forward pass fails on it, alone and twice
    "crash",  # it kills the process, twice
    "timeout",  # it hangs the process, twice
    "out_of_memory",  # it does not fit the device even alone
    "forgotten",  # it was forgotten at a person's wish: no failure, and never tried again
]

FORGOTTEN: Code = "forgotten"

CODES: frozenset[str] = frozenset(get_args(Code)) - {FORGOTTEN}
"""All codes of failures."""

PASSING: frozenset[str] = frozenset(
    {"not_found", "forbidden", "unreadable", "timeout", "crash", "out_of_memory"}
)
"""Codes of failures that another day may not have."""


@dataclass(frozen=True, slots=True)
class Span:
    """A byte range of a container file."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table file."""

    index: int


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where one image lies.

    ``key`` is unique in the job and the same in every listing; ``uri`` is the full address of
    the file; ``at`` is the place inside a container; ``columns`` are the values that the input
    asked to keep, and the truth it gave (types: ``Source.columns``). Of an image that was forgotten,
    ``key`` is a hash and ``uri`` empty.
    """

    key: str
    uri: str
    at: Span | Row | None = None
    etag: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_forgotten(self) -> bool:
        """Whether the image was forgotten."""
        return not self.uri


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of work, of retry and of writing: consecutive refs of the listing.

    ``vanished`` are the positions of images that the source no longer has, where that is to be marked.
    """

    index: int
    refs: tuple[ImageRef, ...]
    vanished: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one image has no result; it becomes the row's ``error``."""

    stage: Stage
    code: Code
    message: str


class Decodable(Protocol):
    """What a source reads where that is no image file: raw pixels, or a part of another picture."""

    @property
    def size_bytes(self) -> int:
        """The bytes that were read for it."""

    def decode(
        self, least: Callable[[tuple[int, int]], tuple[int, int] | None]
    ) -> tuple[Tensor, tuple[int, int]]:
        """Return what `cnnbatch.images.decode.decode` returns for a file, and raise as it does."""


Content = bytes | Decodable
"""What a reader gives of one image: a whole image file, or a picture that decodes itself."""


@dataclass(frozen=True, slots=True)
class Image:
    """One decoded image.

    ``pixels`` is uint8 RGB (3, H, W), upright; ``size`` is (height, width) of the upright
    original in pixels, also where ``pixels`` was decoded smaller; ``truth`` is the image's row
    of the truth table, where the source has one.
    """

    ref: ImageRef
    pixels: Tensor
    size: tuple[int, int]
    truth: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """One input of the network.

    ``pixels`` is uint8 or float (3, H, W), padded to one of the model's few shapes; ``size`` is
    the (height, width) of its part that is picture; ``offset`` (y, x) and ``scale`` lead back:
    original = (prepared - offset) / scale. ``original`` is the original's (height, width), where outputs of
    that size are made on the device. ``network`` says which of a model's networks it is for, where the model
    has several.
    """

    pixels: Tensor
    size: tuple[int, int]
    offset: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    original: tuple[int, int] | None = field(default=None, kw_only=True)
    network: str = field(default="", kw_only=True)

    @property
    def sizes(self) -> tuple[int, ...]:
        """What `Model.forward` is told of this input: its picture's size and, if given, the original's."""
        return (*self.size, *(self.original or ()))


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one finished shard cost and gave; the part's footer holds it.

    ``rows`` are all of the part, ``predicted`` those made now: fewer where only failed or
    changed ones were tried again. ``failed`` counts the part's failures, ``failed_now`` those of the
    rows made now. ``seconds`` by stage: wall time for read, forward and write; processor time of
    their threads for decode, prepare and rows.
    """

    shard: int
    rows: int
    predicted: int
    failed: Mapping[str, int]
    seconds: Mapping[str, float]
    failed_now: Mapping[str, int] = field(default_factory=dict)


T = TypeVar("T")


R = TypeVar("R")


class Map(Protocol):
    """Applies a function to many values, perhaps side by side, and yields the results in order."""

    def __call__(self, function: Callable[[T], R], values: Iterable[T], /) -> Iterator[R]:
        """Yield ``function(value)`` for each value."""


def here(function: Callable[[T], R], values: Iterable[T]) -> Iterator[R]:
    """Yield ``function(value)`` for each value, one after the other."""
    return map(function, values)


class Source(Protocol):
    """A collection of images; small and picklable, for it travels to the workers."""

    @property
    def columns(self) -> pa.Schema:
        """Types of `ImageRef.columns`: the kept columns, and the truth where the listing knows it."""

    @property
    def truth_schema(self) -> pa.Schema | None:
        """Columns of `truth`, its classes in the metadata where they are known; None: no truth."""

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the images in an order that is the same in every listing, beginning behind ``after``."""

    def read(self, shard: Shard) -> Iterator[Callable[[], Content | Failure]]:
        """Give one reader an image, in order, to be called in any thread.

        A reader returns the image, as a whole file's bytes or as a picture that decodes itself, or
        the image's own failure; it raises `EnvironmentFault` only.
        """

    def truth(self, shard: Shard) -> pa.Table | None:
        """Return the truth of a shard, one row a ref, in order."""


Precision = Literal["fp32", "bf16", "fp16"]


Backend = Literal["eager", "compile", "openvino"]


Decoder = Literal["cpu", "cuda"]


Head = Literal["masks", "keypoints"]
"""What a detector may give of an object beside its box, and what gives it."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where and how a model runs; decided before the first shard.

    ``device`` is a torch device string (``cpu``, ``cuda``, ``mps``); ``threads`` is the number
    of CPU threads that the forward pass may use; ``batch`` the number of inputs that nearly every
    forward pass has.
    """

    device: str
    precision: Precision = "fp32"
    backend: Backend = "eager"
    threads: int = 1
    batch: int = 1


class Preparing(Protocol):
    """What turns decoded pictures into network inputs, in the threads that decode them."""

    def decode_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """Return the least (height, width) that `prepare` needs of a picture of ``size``; None: all."""

    def prepare(self, image: Image) -> Sequence[Prepared]:
        """Turn one image into network inputs; runs in the thread that decoded it, where the pixels lie."""


class Model(Preparing, Protocol):
    """A task's network, loaded on one device; the worker calls its steps, each in its own threads.

    It may also have ``classes``, a `truth.classes.ModelClasses`, which the output keeps; ``match``: called
    with the classes of a truth that has objects, it raises `UserError` where it can't know one of them;
    ``notes``, sentences that a run shows: what was assumed of its weights; ``networks``, models by name,
    whose `forward` is called instead of its own for the inputs that name one; and ``columns``, those of the
    task with what only the loaded network knows of them.
    """

    identity: Mapping[str, str]
    """What can change a row: ``weights`` (SHA-256), ``preprocessing``, ``library`` (major.minor)."""

    def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> Any:
        """Run the network on ``batch`` (N, 3, H, W) with picture ``sizes`` (N, 2) as (height, width).

        Of inputs that have the original's size, ``sizes`` are (N, 4): that comes behind.

        Returns a dict or tuple of tensors, or of lists, of first dimension N.
        """

    def rows(
        self,
        images: Sequence[Image],
        prepared: Sequence[Sequence[Prepared]],
        outputs: Sequence[Sequence[Any]],
    ) -> pa.RecordBatch:
        """Build one row an image with the columns of `Task.columns`; one inner sequence an image."""
