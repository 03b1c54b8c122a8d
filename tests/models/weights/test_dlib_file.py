"""dlib's files: what they hold, and that damaged ones cost nothing but an error."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.errors import UserError
from cnnbatch.models.weights import dlib_file
from tests import dlib_written
from tests.dlib_written import integer, integers, text
from tests.memory import peak_bytes

WHOLE = dlib_written.layers().file()
PER_BYTE, BESIDE = 64, 200_000
"""What reading may allocate: bytes for each byte of the file, and beside that."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "network.dat"


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"network\.dat' is no whole network of dlib's") as caught:
        dlib_file.load(path)
    return str(caught.value)


def test_a_file_gives_what_was_written(file: Path) -> None:
    file.write_bytes(WHOLE)
    network = dlib_file.load(file)
    assert network.size == (150, 150)
    assert network.means == pytest.approx((122.782, 117.001, 104.298), abs=1e-4)
    first, second = network.layers[:2]
    assert (first.kind, first.numbers) == ("con_4", (2, 7, 7, 2, 2, 0, 0))
    assert first.shapes == ((2, 3, 7, 7), (1, 2, 1, 1))
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, (2 / 147) ** 0.5, 294), rng.normal(size=2)])
    assert np.array_equal(first.parameters, values.astype("f4"))
    assert (second.kind, second.numbers, len(second.parameters)) == ("affine_", (0,), 4)
    assert network.layers[-1].kind == "fc_2"
    assert not first.parameters.flags.owndata  # a view of the file's bytes


@pytest.mark.parametrize("value", [0, 1, -1, 255, 256, -70_000, 2**63, -(2**64) + 1])
def test_integers(value: int) -> None:
    assert dlib_file._Reader(integer(value)).integer() == value


@pytest.mark.parametrize("value", [0.0, 1.0, -0.75, 122.782, 3e-5, 2e30])
def test_real_numbers(value: float) -> None:
    assert dlib_file._Reader(dlib_written.real(value)).reals(1) == pytest.approx([value], rel=1e-6)


def test_what_is_cut_off_or_too_long_is_refused(file: Path) -> None:
    assert "it is cut off" in refused(file, WHOLE[:-1])
    assert "it is cut off: 1 bytes are expected at 0, 0 are left" in refused(file, b"")
    assert "1 bytes follow behind its end" in refused(file, WHOLE + b"0")


def test_sizes_are_checked_before_anything_is_allocated(file: Path) -> None:
    header = integers(2, 296, 1, 1, 1)
    first, rest = WHOLE.split(header, 1)
    for sizes in [(2**60, 2**60, 2**60, 2**60), (2**31, 1, 1, 1)]:
        said = refused(file, first + integers(2, *sizes) + rest)
        assert "it is cut off" in said
    assert "expected the sizes" in refused(file, first + integers(2, -1, -1, 1, 1) + rest)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (text("loss_metric_2"), text("loss_mmod_"), "expected the loss loss_metric_2, got 'loss_mmod_'"),
        (text("input_rgb_image_sized"), text("input<matrix>"), "got 'input<matrix>'"),
        (text("relu_"), text("prelu_"), "expected one of the layers con_4, affine_.*got 'prelu_'"),
        (text("affine_") + integers(2, 4), text("affine_") + integers(3, 4), "version of a tensor to be 2"),
        (b"110", b"1x0", "expected flags"),
        (text("con_4"), integer(2**40) + b"con_4", "expected a name of at most 64 bytes"),
        (integers(1, 1, 2, 1, 1, 0), integers(1, 1, 3, 1, 1, 0), "needs 5 numbers, but has 4"),
    ],
)
def test_another_network_is_refused(file: Path, old: bytes, new: bytes, said: str) -> None:
    assert old in WHOLE
    file.write_bytes(WHOLE.replace(old, new, 1))
    with pytest.raises(UserError, match=said):
        dlib_file.load(file)


def test_numbers_that_no_double_holds_are_refused(file: Path) -> None:
    assert "expected a finite number" in refused(
        file, WHOLE.replace(dlib_written.real(0.6), integers(1, 32_000), 1)
    )


def test_a_file_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        dlib_file.load(file)


def test_a_file_of_many_gigabytes_is_not_read(file: Path) -> None:
    with file.open("wb") as sparse:
        sparse.truncate(1 << 34)
    with pytest.raises(UserError, match="expected at most 1,073,741,824 bytes"):
        dlib_file.load(file)


def read_within_bounds(data: bytes) -> None:
    """Parse ``data``: it gives a network or the one error, and allocates in proportion to its length."""

    def read() -> None:
        with suppress(dlib_file._Damaged):
            dlib_file.parse(data)

    limit = PER_BYTE * len(data) + BESIDE
    assert peak_bytes(read, limit) <= limit


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=4), st.data())
def test_damaged_bytes_give_that_error_or_a_network(
    places: list[tuple[int, int]], data: st.DataObject
) -> None:
    damaged = bytearray(WHOLE)
    for place, value in places:
        damaged[place] = value
    end = data.draw(st.sampled_from([len(damaged), len(damaged) // 2]) | st.integers(0, len(damaged)))
    read_within_bounds(bytes(damaged[:end]))


@given(st.integers(0, len(WHOLE)), st.integers(0, len(WHOLE)), st.binary(max_size=40))
def test_bytes_that_are_missing_or_too_many(start: int, end: int, between: bytes) -> None:
    read_within_bounds(WHOLE[:start] + between + WHOLE[end:])


@given(st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    read_within_bounds(data)


def test_a_list_of_layers_without_end(file: Path) -> None:
    start = WHOLE.index(integers(2, 2, 2))
    read_within_bounds(WHOLE[:start] + integers(1) * 1_000_000)
    assert "expected at most 10,000 layers" in refused(file, WHOLE[:start] + integers(1) * 1_000_000)
