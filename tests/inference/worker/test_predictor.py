"""Every input goes through the network once, its output comes to its image, and blame to whom it belongs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.errors import EnvironmentFault
from cnnbatch.inference.worker.journal import Journal, suspects
from cnnbatch.inference.worker.predictor import PredictFault, Predictor, Window
from cnnbatch.inference.worker.readahead import Item
from cnnbatch.inference.worker.transfer import Direct, Transfer, split, stack
from cnnbatch.output.part import Outcome
from cnnbatch.types import Failure, Image, ImageRef, Prepared

MARK = 7


class Sums:
    """A model that adds up the pixels; it holds ``room`` inputs at once, and none that is marked."""

    identity: dict[str, str] = {}

    def __init__(self, room: int = 10**6) -> None:
        self.room = room
        self.forwards: list[list[int]] = []

    def decode_size(self, size: tuple[int, int]) -> None:
        return None

    def prepare(self, image: Image) -> list[Prepared]:
        return [Prepared(torch.zeros((3, 2, 2), dtype=torch.uint8), (2, 2))]

    def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> dict[str, Any]:
        assert len(batch) == len(sizes)
        self.forwards.append(batch[:, 0, 0, 0].tolist())
        if len(batch) > self.room or bool((batch == MARK).all((1, 2, 3)).any()):
            raise torch.OutOfMemoryError("CUDA out of memory. planted\nand more words")
        return {"sum": batch.double().sum((1, 2, 3)), "count": [len(batch)] * len(batch)}

    def rows(self, images: Any, prepared: Any, outputs: Any) -> Any:
        raise NotImplementedError


class Late:
    """Brings one batch ahead and fetches one behind, as on a GPU, and notes in which order."""

    depth = 1

    def __init__(self, breaks: Callable[[int], bool] = lambda number: False) -> None:
        self.events: list[str] = []
        self._brought = self._launched = 0
        self._breaks = breaks

    def bring(self, prepared: Sequence[Prepared]) -> Callable[[], torch.Tensor]:
        self.events.append(f"bring {self._brought}")
        self._brought += 1
        return lambda: stack(prepared)

    def fetch(self, outputs: Any) -> Callable[[], list[Any]]:
        number = self._launched
        self._launched += 1
        self.events.append(f"launch {number}")

        def landed() -> list[Any]:
            self.events.append(f"land {number}")
            if self._breaks(number):
                raise RuntimeError("planted: an error of the device")
            return split(outputs)

        return landed

    def close(self) -> None:
        pass


def item(position: int, inputs: int = 1, side: int = 2, marked: Collection[int] = ()) -> Item:
    """Return an image whose inputs are filled with its position; ``marked`` inputs with `MARK`."""
    ref = ImageRef(str(position), "")
    prepared = [
        Prepared(
            torch.full((3, side, side), MARK if number in marked else position % 200 + 10, dtype=torch.uint8),
            (side, side),
        )
        for number in range(inputs)
    ]
    return Item(position, Outcome(ref), Image(ref, torch.empty(0), (side, side)), prepared)


def failed(position: int) -> Item:
    """Return an image that was not decoded."""
    found = Item(position, Outcome(ImageRef(str(position), "")))
    found.outcome.failure = Failure("decode", "empty", "")
    return found


def items(positions: Iterable[int], marked: Collection[int] = ()) -> list[Item]:
    return [item(position, marked={0} if position in marked else ()) for position in positions]


def predictor(folder: Path, model: Any, transfer: Transfer, batch: int = 4) -> Predictor:
    return Predictor(model, transfer, Journal(folder / "journal"), batch)


def require_same(given: Sequence[Sequence[Item]], found: Sequence[Window]) -> None:
    """Require that every window has come, in order, with the sums of its images that have not failed."""
    assert [window.items for window in found] == list(given)
    for window in found:
        good = [one for one in window.items if one.outcome.failure is None]
        sums = [[float(output["sum"]) for output in inner] for inner in window.outputs()]
        assert sums == [[float(one.pixels.double().sum()) for one in image.prepared] for image in good]


@st.composite
def windows(draw: st.DrawFn) -> list[list[Item]]:
    """Draw windows of images: failed ones, some of several inputs, some of another shape, some marked."""
    kinds = st.tuples(st.integers(0, 3), st.sampled_from([2, 3]), st.sets(st.integers(0, 3), max_size=1))
    found: list[list[Item]] = []
    for images in draw(st.lists(st.lists(kinds, max_size=8), max_size=5)):
        start = sum(len(window) for window in found)
        found.append(
            [
                item(start + place, inputs, side, marked) if inputs else failed(start + place)
                for place, (inputs, side, marked) in enumerate(images)
            ]
        )
    return found


@pytest.mark.parametrize("way", [Direct, Late])
@given(given_windows=windows(), batch=st.integers(1, 6), room=st.integers(1, 6))
def test_every_image_has_its_outputs_or_its_failure(
    tmp_path_factory: pytest.TempPathFactory,
    way: type[Direct | Late],
    given_windows: list[list[Item]],
    batch: int,
    room: int,
) -> None:
    here = predictor(tmp_path_factory.mktemp("predictor"), Sums(room), way(), batch)
    require_same(given_windows, list(here.predict(0, given_windows)))
    for image in (image for window in given_windows for image in window):
        marked = any(bool((one.pixels == MARK).all()) for one in image.prepared)
        failure = image.outcome.failure
        assert (failure.code if failure else None) == (
            "out_of_memory" if marked else None if image.prepared else "empty"
        )
    assert not here.journal.busy()


def test_a_halved_batch_is_its_first_half_then_its_second(tmp_path: Path) -> None:
    model = Sums(room=2)
    list(predictor(tmp_path, model, Direct(), batch=8).predict(0, [items(range(12))]))
    numbers = [[value - 10 for value in batch] for batch in model.forwards]
    assert numbers == [
        list(range(8)),
        *[list(range(4)), [0, 1], [2, 3], [4, 5], [6, 7]],
        *[[8, 9], [10, 11]],  # The size that worked is kept.
    ]


def test_each_shape_has_a_size_of_its_own(tmp_path: Path) -> None:
    class Large(Sums):
        def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> dict[str, Any]:
            self.room = 1 if batch.shape[-1] == 3 else 10
            return super().forward(batch, sizes)

    model = Large()
    here = predictor(tmp_path, model, Direct())
    window = [item(place, side=3) for place in range(4)] + items(range(4, 8))
    given_windows = [window, items(range(8, 12))]
    require_same(given_windows, list(here.predict(0, given_windows)))
    assert [len(batch) for batch in model.forwards] == [4, 2, 1, 1, 1, 1, 4, 4]


def test_a_batch_is_brought_before_the_one_ahead_of_it_is_launched_and_fetched_behind(tmp_path: Path) -> None:
    way = Late()
    given = [items(range(8)), items(range(8, 12))]
    require_same(given, list(predictor(tmp_path, Sums(), way).predict(0, given)))
    assert way.events == [
        *["bring 0", "bring 1", "launch 0"],
        *["bring 2", "launch 1", "land 0"],  # Across the end of a window, too.
        *["launch 2", "land 1", "land 2"],
    ]


def test_the_plain_way_takes_a_window_only_once_the_one_before_is_done(tmp_path: Path) -> None:
    order: list[str] = []

    def taken() -> Iterable[list[Item]]:
        for number in range(3):
            order.append(f"take {number}")
            yield items(range(4 * number, 4 * number + 4))

    for number, _ in enumerate(predictor(tmp_path, Sums(), Direct()).predict(0, taken())):
        order.append(f"done {number}")
    assert order == ["take 0", "done 0", "take 1", "done 1", "take 2", "done 2"]


class Broken(Sums):
    """A model that raises on a marked input."""

    def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> dict[str, Any]:
        if bool((batch == MARK).all((1, 2, 3)).any()):
            raise ValueError("planted")
        return super().forward(batch, sizes)


@pytest.mark.parametrize("way", [Direct, Late])
def test_an_error_is_of_the_batch_that_raised(tmp_path: Path, way: type[Direct | Late]) -> None:
    here = predictor(tmp_path, Broken(), way())
    with pytest.raises(PredictFault, match="ValueError: planted") as fault:
        list(here.predict(3, [items(range(20), marked={9})]))
    assert (fault.value.shard, fault.value.positions) == (3, (8, 9, 10, 11))


def test_an_error_that_shows_late_is_of_all_that_is_under_way(tmp_path: Path) -> None:
    here = predictor(tmp_path, Sums(), Late(breaks=lambda number: number == 1))
    with pytest.raises(PredictFault, match="error of the device") as fault:
        list(here.predict(0, [items(range(20))]))
    assert fault.value.positions == tuple(range(4, 12))


def test_the_journal_names_all_that_is_under_way(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Watching(Sums):
        def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> dict[str, Any]:
            seen.append(suspects(tmp_path / "journal"))
            return super().forward(batch, sizes)

    here = predictor(tmp_path, Watching(), Late(), batch=2)
    for _ in here.predict(5, [items(range(6))]):
        assert not here.journal.busy()
    assert seen == [{5: [0, 1]}, {5: [0, 1, 2, 3]}, {5: [2, 3, 4, 5]}]
    assert not here.journal.busy()


@pytest.mark.parametrize("way", [Direct, Late])
def test_a_model_may_write_into_the_batch_it_is_given(tmp_path: Path, way: type[Direct | Late]) -> None:
    class Writing(Sums):
        def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> dict[str, Any]:
            batch += 1
            found = super().forward(batch, sizes)
            return {**found, "sum": found["sum"] - batch[0].numel()}

    given = [items(range(8)), items(range(8, 16))]
    require_same(given, list(predictor(tmp_path, Writing(room=3), way(), batch=8).predict(0, given)))


@pytest.mark.parametrize("way", [Direct, Late])
def test_one_tile_that_does_not_fit_fails_its_image_alone(tmp_path: Path, way: type[Direct | Late]) -> None:
    window = [item(0, inputs=3), item(1, inputs=3, marked={1}), item(2, inputs=3)]
    here = predictor(tmp_path, Sums(), way())
    require_same([window], list(here.predict(0, [window])))
    assert [image.outcome.failure is None for image in window] == [True, False, True]
    failure = window[1].outcome.failure
    assert failure is not None
    assert (failure.stage, failure.code) == ("predict", "out_of_memory")
    assert failure.message == "an input (3, 2, 2) does not fit even alone: CUDA out of memory. planted"


@pytest.mark.parametrize("way", [Direct, Late])
def test_a_device_without_memory_is_no_fault_of_an_image(tmp_path: Path, way: type[Direct | Late]) -> None:
    here = predictor(tmp_path, Sums(room=0), way())
    with pytest.raises(EnvironmentFault, match="no memory left: CUDA out of memory"):
        list(here.predict(0, [items(range(4))]))


def test_where_a_shape_fitted_before_and_fits_no_more_the_device_is_full(tmp_path: Path) -> None:
    class Fuller(Sums):
        def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> dict[str, Any]:
            self.room = 10 if len(self.forwards) < 2 or batch.shape[-1] == 2 else 0
            return super().forward(batch, sizes)

    here = predictor(tmp_path, Fuller(), Direct())
    with pytest.raises(EnvironmentFault, match="no memory left"):
        list(here.predict(0, [[item(place, side=3) for place in range(12)]]))


def test_a_shape_that_never_fitted_while_small_pictures_do_is_the_image_s_own(tmp_path: Path) -> None:
    class Small(Sums):
        def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> dict[str, Any]:
            self.room = 10 if batch.shape[-1] == 2 else 0
            return super().forward(batch, sizes)

    window = [item(0, side=3), item(1)]
    require_same([window], list(predictor(tmp_path, Small(), Direct()).predict(0, [window])))
    assert [image.outcome.failure is None for image in window] == [False, True]


def test_what_a_pass_had_made_is_gone_before_the_next_try(tmp_path: Path) -> None:
    class Hoarding(Sums):
        made: weakref.ref[torch.Tensor] | None = None

        def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> dict[str, Any]:
            assert self.made is None or self.made() is None
            features = batch.float() * 2
            self.made = weakref.ref(features)
            try:
                return super().forward(batch, sizes)
            except torch.OutOfMemoryError as error:
                self.cycle = [error]  # As a debugger's hook may: its traceback keeps this frame.
                raise

    gc.disable()
    try:
        list(predictor(tmp_path, Hoarding(room=2), Direct(), batch=8).predict(0, [items(range(8))]))
    finally:
        gc.enable()


def test_a_probe_raises_what_the_model_raises(tmp_path: Path) -> None:
    class Refusing(Sums):
        def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> dict[str, Any]:
            raise ValueError("planted")

    predictor(tmp_path, Sums(), Late()).probe()
    with pytest.raises(PredictFault, match="planted"):
        predictor(tmp_path, Refusing(), Direct()).probe()
    with pytest.raises(EnvironmentFault, match="no memory left"):
        predictor(tmp_path, Sums(room=0), Direct()).probe()
