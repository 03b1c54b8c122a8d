"""Decodes and prepares plain JPEG on a CUDA device, where the processors of its host hold it up.

The device decodes whole pictures only, rounds otherwise than libjpeg, and its decoder says less: the
headers are checked as ever, but damage inside the entropy-coded data is found only where nvjpeg finds
it. So a file goes there only if nothing about it is odd; every other, and every one that fails there, is
the host's, which says what is wrong with it.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

import numpy as np
import simplejpeg
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from cnnbatch.errors import EnvironmentFault
from cnnbatch.images.decode import upright
from cnnbatch.images.headers import ends_with_its_picture
from cnnbatch.images.jpeg import JpegHeader, Size, read_header
from cnnbatch.images.quiet import without_warnings

MOST_PIXELS = 1 << 25
"""Of a picture that is decoded here: resizing takes about 20 bytes a pixel on the device, in each thread.
A larger one is the host's, which decodes it smaller."""

_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_COLOURS = frozenset({"YCbCr", "Gray"})
_SUBSAMPLINGS = frozenset({"444", "422", "420", "440", "411", "Gray"})

DecodeAll = Callable[[list[Tensor]], list[Tensor]]
"""From the bytes of JPEGs, uint8 (B,) on the host, to RGB, uint8 (3, H, W), which are there on return.

Raises RuntimeError where it can't decode one of them.
"""


def by_nvjpeg(files: list[Tensor]) -> list[Tensor]:
    """Decode on the CUDA device, all at once; torchvision takes one call at a time in a process."""
    try:
        with without_warnings():  # Deprecated in favour of TorchCodec, from 0.29 on.
            pictures: list[Tensor] = decode_jpeg(files, ImageReadMode.RGB, "cuda")
    except RuntimeError:
        torch.cuda.synchronize()  # What was begun may still write into memory that is free again.
        raise
    _wait_for_stream()
    return pictures


def suits(data: bytes, header: JpegHeader) -> bool:
    """Say whether a JPEG is of a kind that the device decodes as libjpeg does, and shows no oddity."""
    facts, (height, width) = header.facts, header.size
    return (
        facts.frame in (_BASELINE, _EXTENDED, _PROGRESSIVE)
        and facts.bits == 8
        and header.colours in _COLOURS
        and header.subsampling in _SUBSAMPLINGS
        and height * width <= MOST_PIXELS
        and ends_with_its_picture(data)
    )


class OnDevice:
    """Decodes and prepares on the device, for the decoding threads of one worker.

    Each thread has a stream of its own, on which nothing is pending when it goes on to its next picture:
    torchvision's decoder writes into memory without waiting for what is pending on the stream it comes from.
    A whole picture lies on the device while it is prepared; what was prepared, while its window is under way.

    Raises EnvironmentFault where the device can't decode.
    """

    def __init__(self, decode_all: DecodeAll = by_nvjpeg) -> None:
        self._gathered = _Gathered(decode_all)
        self._of_thread = _OfThread()
        self._require_decoder(decode_all)

    def handle(self, data: bytes, take: Callable[[tuple[Tensor, Size]], None]) -> bool:
        """Decode a file, and have ``take`` prepare what `images.decode.decode` would give, on the device.

        Returns False where that is the host's to do: the device does not know the kind of file, has no
        room for it, or failed in whatever way. Raises DecodeError as `decode`, for what the headers tell.
        """
        header = read_header(data)
        if header is None or not suits(data, header):
            return False
        try:
            return self._is_handled(data, header, take)
        except Exception:  # The host has the last word on the picture; on the device, its next batch.
            return False

    def _is_handled(
        self, data: bytes, header: JpegHeader, take: Callable[[tuple[Tensor, Size]], None]
    ) -> bool:
        with self._own_stream():
            pixels = self._gathered.decode(data)  # Until the block ends nobody else may have its memory.
            if pixels is None or tuple(pixels.shape) != (3, *header.size):
                return False
            take(upright(pixels, header.size, header.facts.orientation))
            return True

    @contextmanager
    def _own_stream(self) -> Iterator[None]:
        if not torch.cuda.is_available():  # In tests, where the decoder is another.
            yield
            return
        with torch.cuda.stream(self._of_thread.stream()):
            try:
                yield
            finally:
                _wait_for_stream()

    def _require_decoder(self, decode_all: DecodeAll) -> None:
        """Decode a small picture: a decoder that never works would leave all pictures to the host."""
        gray = simplejpeg.encode_jpeg(np.full((16, 16, 3), 128, np.uint8))
        try:
            with self._own_stream():
                decode_all([_bytes_tensor(gray)])
        except RuntimeError as error:
            raise EnvironmentFault(
                f"on {socket.gethostname()} nvjpeg, which is to decode this output's images, fails: {error}",
                "look at the driver, and whether that host's torchvision was built with nvjpeg",
            ) from error


class _OfThread(threading.local):
    """A thread's own stream."""

    _stream: torch.cuda.Stream | None = None

    def stream(self) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        return self._stream


class _Gathered:
    """Decodes in one call what several threads ask for at a time: the device's decoders work side by side.

    Whoever finds the decoder free decodes all that wait for it.
    """

    def __init__(self, decode_all: DecodeAll) -> None:
        self._decode_all = decode_all
        self._busy = threading.Lock()
        self._waiting: deque[tuple[bytes, Future[Tensor | None]]] = deque()

    def decode(self, data: bytes) -> Tensor | None:
        """Return a file's pixels as they are stored; None where the decoder fails on it."""
        found: Future[Tensor | None] = Future()
        self._waiting.append((data, found))
        with self._busy:
            if not found.done():
                self._decode_waiting()
        return found.result()

    def _decode_waiting(self) -> None:
        asked = [self._waiting.popleft() for _ in range(len(self._waiting))]
        try:
            pictures = self._decoded([data for data, _ in asked])
        except BaseException as error:  # Else those who wait would do so for ever.
            for _, found in asked:
                found.set_exception(error)
            return
        for (_, found), picture in zip(asked, pictures, strict=True):
            found.set_result(picture)

    def _decoded(self, files: Sequence[bytes]) -> Sequence[Tensor | None]:
        """Decode some files; where one fails they all do, so then each by itself."""
        try:
            return self._decode_all([_bytes_tensor(data) for data in files])
        except RuntimeError:
            pass  # Also for want of memory; out of the handler, what the error holds is free again.
        if len(files) == 1:
            return [None]
        return [self._decoded([data])[0] for data in files]


def _bytes_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)  # A copy: torch wants to be able to write.


def _wait_for_stream() -> None:
    """Wait for what this thread has queued, without taking a processor."""
    done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    done.record()
    done.synchronize()
