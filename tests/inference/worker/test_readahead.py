"""However large a shard is, only a bounded number of its images and bytes lie in memory."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from cnnbatch.errors import EnvironmentFault
from cnnbatch.inference.worker import readahead
from cnnbatch.inference.worker.journal import Journal
from cnnbatch.inference.worker.readahead import DecodeOptions, Item, ReadAhead, ReadRequest
from cnnbatch.types import Failure, Image, ImageRef, Prepared, Shard

WINDOW = 8
COUNT = 500


def png() -> bytes:
    file = io.BytesIO()
    Pillow.new("RGB", (2, 2)).save(file, "PNG")
    return file.getvalue()


class Counted:
    """A source of which every image is the same file; it counts what was read, and fails where told."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.data, self.fails_at = png(), fails_at
        self.asked = 0
        self._lock = threading.Lock()

    def read(self, shard: Shard) -> Iterator[Callable[[], bytes | Failure]]:
        return iter([lambda ref=ref: self._one(int(ref.key)) for ref in shard.refs])

    def _one(self, number: int) -> bytes:
        with self._lock:
            self.asked += 1
        if number == self.fails_at:
            raise EnvironmentFault("the storage is down", "mend it")
        return self.data


class Patient:
    """A model that prepares nothing before ``open``, and counts what it prepared."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.prepared = 0

    def decode_size(self, size: tuple[int, int]) -> None:
        return None

    def prepare(self, image: Image) -> Sequence[Prepared]:
        assert self.open.wait(60)
        self.prepared += 1
        return [Prepared(image.pixels, image.size)]


@pytest.fixture(params=[(1, False), (2, False), (2, True)], ids=["turns-1", "turns-2", "beside"])
def ahead(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[[Counted, Patient], ReadAhead]]:
    made: list[ReadAhead] = []

    def make(source: Any, model: Any) -> ReadAhead:
        journal = Journal(tmp_path / f"journal-{len(made)}")
        made.append(
            ReadAhead(source, model, journal, DecodeOptions(request.param[0], WINDOW, request.param[1]))
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


def reading(count: int = COUNT) -> ReadRequest:
    refs = tuple(ImageRef(str(number), str(number)) for number in range(count))
    return ReadRequest(Shard(0, refs), range(count), {}, None)


def settled(number: Callable[[], int]) -> int:
    """Return ``number`` once it has not changed for a while."""
    while True:
        before = number()
        time.sleep(0.2)
        if number() == before:
            return before


def opened() -> Patient:
    model = Patient()
    model.open.set()
    return model


@pytest.mark.slow
def test_no_more_images_are_read_than_the_window_holds(ahead: Any) -> None:
    source = Counted()
    taken: list[int] = []
    with ahead(source, opened()).windows(reading()) as windows:
        for window in windows:
            taken += [item.position for item in window]
            assert len(window) == min(WINDOW, COUNT - len(taken) + len(window))
            asked = settled(lambda: source.asked) if len(taken) <= 3 * WINDOW else source.asked
            assert asked <= len(taken) + WINDOW
    assert taken == list(range(COUNT))


def test_decoding_goes_on_beside_the_taker_or_in_turns_with_it(ahead: Any) -> None:
    model = opened()
    shared = ahead(Counted(), model)
    with shared.windows(reading()) as windows:
        for taken in (WINDOW, 2 * WINDOW):
            next(windows)
            assert settled(lambda: model.prepared) == (taken + WINDOW if shared.overlaps else taken)


def test_two_shards_in_flight_have_a_window_each(ahead: Any) -> None:
    source = Counted()
    shared = ahead(source, opened())
    entered, done = threading.Event(), threading.Event()
    got: list[list[Item]] = []

    def second() -> None:
        with shared.windows(reading()) as windows:
            entered.set()
            got.append(next(windows))
            done.wait(60)

    waiting = threading.Thread(target=second, daemon=True)
    with shared.windows(reading()) as windows:
        next(windows)
        waiting.start()
        # The second is fed once the first is all under way. It is not even let in before: there it
        # might take the device that the first needs to make room.
        assert settled(lambda: source.asked) <= 2 * WINDOW
        assert not entered.is_set()
    assert settled(lambda: len(got)) == 1
    assert source.asked <= 4 * WINDOW
    done.set()
    waiting.join(60)


def test_undecoded_bytes_are_bounded(ahead: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source, model = Counted(), Patient()
    monkeypatch.setattr(readahead, "ENCODED_LIMIT_BYTES", 3 * len(source.data))
    monkeypatch.setattr(readahead, "UNREAD_LIMIT", 1)
    shared, taken = ahead(source, model), []

    def take() -> None:
        with shared.windows(reading()) as windows:
            taken.append(next(windows))

    taking = threading.Thread(target=take, daemon=True)
    taking.start()
    # Three lie undecoded, and one more is read by the thread that had found room for it.
    assert settled(lambda: source.asked) <= 4
    model.open.set()
    taking.join(60)
    assert len(taken[0]) == WINDOW  # More bytes than may lie undecoded at once.


def test_who_stops_early_reads_no_further(ahead: Any) -> None:
    source = Counted()
    with ahead(source, opened()).windows(reading()) as windows:
        next(windows)
    assert settled(lambda: source.asked) <= 2 * WINDOW


def test_who_stops_early_leaves_no_bytes_behind(ahead: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Counted()
    monkeypatch.setattr(readahead, "ENCODED_LIMIT_BYTES", 3 * len(source.data))
    monkeypatch.setattr(readahead, "UNREAD_LIMIT", 1)
    shared = ahead(source, opened())
    for _ in range(3):
        with shared.windows(reading()) as windows:
            assert len(next(windows)) == WINDOW
            settled(lambda: source.asked)  # Now the feeding thread waits for those bytes to be decoded.


def test_a_fault_of_the_storage_comes_in_its_place(ahead: Any) -> None:
    with ahead(Counted(fails_at=20), opened()).windows(reading()) as windows:
        assert [item.position for _ in range(2) for item in next(windows)] == list(range(16))
        with pytest.raises(EnvironmentFault, match="storage is down"):
            next(windows)
