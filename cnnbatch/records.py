"""The values that travel between the stages; nothing here imports torch or Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Stage = Literal["read", "decode", "prepare", "predict"]

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
]


CODES: frozenset[str] = frozenset(get_args(Code))
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
    asked to keep, and the truth it gave (types: ``Source.columns``).
    """

    key: str
    uri: str
    at: Span | Row | None = None
    etag: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


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


class Picture(Protocol):
    """What a source reads where that is no image file: raw pixels, or a part of another picture."""

    @property
    def size_bytes(self) -> int:
        """The bytes that were read for it."""

    def decode(
        self, least: Callable[[tuple[int, int]], tuple[int, int] | None]
    ) -> tuple[Tensor, tuple[int, int]]:
        """Return what `cnnbatch.decode.decode` returns for a file, and raise as it does."""


Content = bytes | Picture
"""What a reader gives of one image: a whole image file, or a picture that decodes itself."""


@dataclass(frozen=True, slots=True)
class Work:
    """A shard to predict; ``condemned`` are the images that failed alone, by position.

    ``again`` stands for a part that is there: its rows of changed images are predicted again, and those
    that failed with one of these codes; the others stay.
    """

    shard: Shard
    condemned: Mapping[int, Failure] = field(default_factory=dict)
    again: frozenset[str] | None = None


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
    original = (prepared - offset) / scale.
    """

    pixels: Tensor
    size: tuple[int, int]
    offset: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0


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


@dataclass(frozen=True, slots=True)
class Sample:
    """A few images of a job, on which the first worker of a kind of device measures how to run it.

    ``images`` are how many the job has at least, ``workers`` how many share them: so much may it take.
    ``precision_open`` where the output has no precision yet, and the job names none; ``decoder_open`` where
    it has no decoder yet.
    """

    shard: Shard
    images: int
    workers: int
    precision_open: bool
    decoder_open: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """What a worker process says once its model is loaded.

    ``settings`` are `speed.Settings` as JSON values, ``key`` under what the output keeps them; ``open``
    where measuring may find better ones; ``trials`` what measuring found, as JSON values;
    ``operators_on_cpu`` what its accelerator lacks; ``identity`` is what can change a row; ``classes``
    are the model's, a `truth.ModelClasses` as JSON values, where it has any; ``rss_bytes`` is what the
    process took, ``left_bytes`` what its host or cgroup still has; ``notes`` are the model's sentences for
    the person who runs the job.
    """

    settings: Mapping[str, Any]
    identity: Mapping[str, Any]
    host: str
    journal: str
    rss_bytes: int
    left_bytes: int
    classes: Mapping[str, Any] | None = None
    key: str = ""
    open: bool = False
    trials: Sequence[Mapping[str, Any]] = ()
    operators_on_cpu: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a worker has no result, as a value, so that it travels and no traceback is lost with it.

    ``predict``: the model raised on the images at ``positions``. ``environment``: the machine or
    the storage, with what to mend. ``user``: a mistake in the job.
    """

    kind: Literal["predict", "environment", "user"]
    what: str
    mend: str = ""
    positions: tuple[int, ...] = ()
