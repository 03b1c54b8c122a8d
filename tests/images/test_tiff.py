"""TIFF 6.0 is the oracle: samples as tifffile reads them or as they were written, brought to 8 bits."""

from __future__ import annotations

import io
import struct
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from cnnbatch.images.decode import DecodeError, decode

HEIGHT, WIDTH = 37, 50
RNG = np.random.default_rng(16)


def shown(data: bytes) -> NDArray[np.uint8]:
    pixels, size = decode(data)
    assert tuple(pixels.shape[1:]) == size
    return pixels.permute(1, 2, 0).numpy()


def written(samples: NDArray[Any], **options: Any) -> bytes:
    """A TIFF by tifffile, which reads back what it wrote."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, **options)
    back = tifffile.imread(io.BytesIO(buffer.getvalue()))
    assert np.array_equal(back, samples, equal_nan=samples.dtype.kind == "f")
    return buffer.getvalue()


def random(dtype: str, *samples: int) -> NDArray[Any]:
    shape = (HEIGHT, WIDTH, *samples)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return RNG.random(shape).astype(kind)
    info = np.iinfo(kind)
    found = RNG.integers(info.min, info.max, shape, kind, endpoint=True)
    found.flat[:2] = info.min, info.max
    return found


def from_full_depth(samples: NDArray[Any]) -> NDArray[np.uint8]:
    """The high byte; of signed numbers the least is black. Fractions count 255."""
    kind = samples.dtype
    if kind.kind == "f":
        return np.rint(samples.astype(np.float64) * 255).astype(np.uint8)
    least = int(np.iinfo(kind).min)
    return np.array(
        [(int(value) - least) >> (8 * kind.itemsize - 8) for value in samples.ravel()], np.uint8
    ).reshape(samples.shape)


def gray(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(values.reshape(HEIGHT, WIDTH, 1), 3, axis=2)


DTYPES = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", DTYPES)
def test_gray_of_every_depth_and_format(dtype: str, order: str) -> None:
    samples = random(dtype)
    for inverse in (False, True):
        photometric = "miniswhite" if inverse else "minisblack"
        data = written(samples, photometric=photometric, byteorder=order)
        expected = from_full_depth(samples)
        assert np.array_equal(shown(data), gray(255 - expected if inverse else expected)), photometric


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["strips", "tiles", "deflate", "predictor", "tiles predictor", "big"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i2", "f4"])
def test_rgb_in_every_layout(dtype: str, planar: str, layout: str) -> None:
    samples = random(dtype, 3)
    options: dict[str, Any] = {"rowsperstrip": 5}
    if "tiles" in layout:
        options = {"tile": (16, 32)}
    if "deflate" in layout or "predictor" in layout:
        options["compression"] = "zlib"
    if "predictor" in layout and dtype[0] != "f":
        options["predictor"] = 2
    if layout == "big":
        options["bigtiff"] = True
    stored = samples if planar == "contig" else np.moveaxis(samples, 2, 0)
    for order in "<>":
        data = written(
            np.ascontiguousarray(stored), photometric="rgb", planarconfig=planar, byteorder=order, **options
        )
        assert np.array_equal(shown(data), from_full_depth(samples))


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("extra", ["unspecified", "assocalpha", "unassalpha"])
def test_alpha_is_dropped_and_what_it_multiplied_undone(extra: str, dtype: str, planar: str) -> None:
    """Also for gray; as Pillow does it, an associated alpha divides 8-bit colours."""
    for colours, photometric in ((3, "rgb"), (1, "minisblack")):
        samples = random(dtype, colours + 1)
        if extra == "assocalpha":
            samples[..., :-1] = np.minimum(samples[..., :-1], samples[..., -1:])
        stored = samples if planar == "contig" else np.moveaxis(samples, 2, 0)
        data = written(
            np.ascontiguousarray(stored), photometric=photometric, planarconfig=planar, extrasamples=[extra]
        )
        expected = from_full_depth(samples[..., :-1])
        if extra == "assocalpha" and dtype == "f4":
            expected = from_full_depth(samples[..., :-1] / samples[..., -1:])
        elif extra == "assocalpha":
            alpha = from_full_depth(samples[..., -1:]).astype(int)
            expected = np.where(alpha, np.minimum(expected.astype(int) * 255 // np.maximum(alpha, 1), 255), 0)
        wrong = np.abs(shown(data).astype(int) - expected)
        assert wrong.max() <= (1 if dtype == "f4" else 0), photometric


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_cmyk_is_pillows_by_its_high_byte(dtype: str, planar: str) -> None:
    samples = random(dtype, 4)
    stored = samples if planar == "contig" else np.moveaxis(samples, 2, 0)
    data = written(np.ascontiguousarray(stored), photometric="separated", planarconfig=planar)
    expected = Image.frombytes("CMYK", (WIDTH, HEIGHT), from_full_depth(samples).tobytes()).convert("RGB")
    assert np.array_equal(shown(data), np.asarray(expected))


# ---- samples that fill no whole bytes


def packed(
    samples: NDArray[np.uint64],
    bits: int,
    photometric: int,
    order: str = "<",
    fill: int = 1,
    planar: int = 1,
    **tags: Any,
) -> bytes:
    """A TIFF of one strip a plane, by the specification: rows begin at whole bytes, high bits first."""
    height, width, depth = samples.shape
    strip = tags.pop("strip", None)
    rationals = {int(name[1:]): tags.pop(name) for name in [*tags] if name[0] == "r"}
    planes = [samples] if planar == 1 else [samples[..., [number]] for number in range(depth)]
    strips = []
    for plane in planes:
        digits = (plane[..., None] >> np.arange(bits - 1, -1, -1, dtype=np.uint64)) & 1
        rows = np.packbits(digits.reshape(height, -1).astype(np.uint8), axis=1)
        if bits % 8 == 0 and order == "<":
            rows = rows.reshape(-1, bits // 8)[:, ::-1]
        strips.append((rows if fill == 1 else np.packbits(np.unpackbits(rows, bitorder="little"))).tobytes())
    strips = strips if strip is None else [strip]
    entries: dict[int, tuple[int, ...]] = {
        256: (width,), 257: (height,), 258: (bits,) * depth, 259: (1,), 262: (photometric,), 266: (fill,),
        277: (depth,), 278: (height,), 279: tuple(map(len, strips)), 284: (planar,),
        **{int(name[1:]): values for name, values in tags.items()}, **rationals,
    }  # fmt: skip
    start = 8 + 2 + 12 * (len(entries) + 1) + 4
    body = b"".join(strips)
    entries[273] = tuple(start + sum(map(len, strips[:number])) for number in range(len(strips)))
    out = b""
    for tag, values in sorted(entries.items()):
        kind = "L" if tag in (256, 257, 273, 278, 279, *rationals) else "H"
        block = struct.pack(f"{order}{len(values)}{kind}", *values)
        count = len(values) // 2 if tag in rationals else len(values)
        out += struct.pack(f"{order}HHL", tag, 5 if tag in rationals else 4 if kind == "L" else 3, count)
        out += block.ljust(4, b"\0") if len(block) <= 4 else struct.pack(f"{order}L", start + len(body))
        body += block if len(block) > 4 else b""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}LH", 8, len(entries))
    return head + out + bytes(4) + body


def to_eight(samples: NDArray[np.uint64], bits: int) -> NDArray[np.uint8]:
    if bits >= 8:
        return (samples >> np.uint64(bits - 8)).astype(np.uint8)
    return (samples * 255 // ((1 << bits) - 1)).astype(np.uint8)


def numbers(bits: int, count: int) -> NDArray[np.uint64]:
    return RNG.integers(0, (1 << bits) - 1, (HEIGHT, WIDTH, count), np.uint64, endpoint=True)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 9, 10, 12, 14, 20])
def test_odd_bits(bits: int, order: str) -> None:
    """MaxSampleValue is no matter of display: 10, 12 and 14 bits count from their own depth."""
    one, three = numbers(bits, 1), numbers(bits, 3)
    expected = to_eight(one, bits)
    for fill in (1, 2):
        assert np.array_equal(shown(packed(one, bits, 1, order, fill)), gray(expected))
        assert np.array_equal(shown(packed(one, bits, 0, order, fill)), gray(255 - expected))
    for planar in (1, 2):
        assert np.array_equal(shown(packed(three, bits, 2, order, planar=planar)), to_eight(three, bits))


@pytest.mark.parametrize("order", "<>")
def test_24_bits_are_in_the_files_byte_order(order: str) -> None:
    values = numbers(24, 1)
    assert np.array_equal(shown(packed(values, 24, 1, order)), gray(to_eight(values, 24)))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_palettes(bits: int) -> None:
    indices, colours = numbers(bits, 1), RNG.integers(0, 65535, (3, 1 << bits))
    data = packed(indices, bits, 3, t320=tuple(map(int, colours.ravel())))
    expected = (colours >> 8).astype(np.uint8).T[indices[..., 0]]
    assert np.array_equal(shown(data), expected)


def test_floats_that_are_no_fractions() -> None:
    samples = (random("f4") * 300 - 20).astype("f4")
    plain = written(samples, photometric="minisblack")
    with pytest.raises(
        DecodeError, match=r"floats from -1?\d.* SMinSampleValue and SMaxSampleValue"
    ) as caught:
        decode(plain)
    assert caught.value.code == "undecodable"
    tags = [(340, "f", 1, -20.0, False), (341, "f", 1, 280.0, False)]
    data = written(samples, photometric="minisblack", extratags=tags)
    expected = np.rint(((samples.astype(float) + 20) / 300).clip(0, 1) * 255).astype(np.uint8)
    assert np.array_equal(shown(data), gray(expected))
    samples[3, 4] = np.nan
    with pytest.raises(DecodeError, match="floats"):
        decode(written(samples / 300, photometric="minisblack"))
    assert shown(written(samples, photometric="minisblack", extratags=tags))[3, 4].tolist() == [0, 0, 0]


def test_the_predictor_of_floats_is_opencvs() -> None:
    samples = random("f4", 3)
    for compression in (5, 8):
        options = [cv2.IMWRITE_TIFF_COMPRESSION, compression, cv2.IMWRITE_TIFF_PREDICTOR, 3]
        done, data = cv2.imencode(".tiff", samples[..., ::-1], options)
        assert done
        back = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        assert back is not None
        assert np.array_equal(back[..., ::-1], samples)
        assert np.array_equal(shown(data.tobytes()), from_full_depth(samples))


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_lzw_with_its_predictor_is_opencvs(dtype: str) -> None:
    for count in (1, 3, 4):
        samples = random(dtype, count)
        options = [cv2.IMWRITE_TIFF_COMPRESSION, 5, cv2.IMWRITE_TIFF_PREDICTOR, 2]
        blue_first = samples[..., [2, 1, 0, 3][:count]] if count > 1 else samples
        done, data = cv2.imencode(".tiff", blue_first, options)
        assert done
        expected = from_full_depth(samples)
        assert np.array_equal(shown(data.tobytes()), gray(expected) if count == 1 else expected[..., :3])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int) -> None:
    samples = random("u2")
    tags = [(274, "H", 1, orientation, True)]
    turned = Image.fromarray(from_full_depth(samples))
    exif = Image.Exif()
    exif[274] = orientation
    buffer = io.BytesIO()
    turned.save(buffer, "TIFF", exif=exif)
    expected = np.asarray(Image.open(buffer).convert("RGB"))
    assert np.array_equal(shown(written(samples, photometric="minisblack", extratags=tags)), expected)


# ---- YCbCr, L*a*b*


def ycbcr(across: int, down: int) -> tuple[NDArray[np.uint64], bytes, NDArray[np.uint8]]:
    """Data units of TIFF 6.0, section 21, and the colours that they stand for by ITU-R BT.601."""
    luma = RNG.integers(0, 255, (36, 48), endpoint=True)
    chroma = RNG.integers(60, 200, (36 // down, 48 // across, 2))
    units = luma.reshape(36 // down, down, 48 // across, across).swapaxes(1, 2).reshape(*chroma.shape[:2], -1)
    data = np.concatenate([units, chroma], axis=2).astype(np.uint8).tobytes()
    cb, cr = np.repeat(np.repeat(chroma, down, 0), across, 1).transpose(2, 0, 1) - 128
    colours = np.stack([luma + 1.402 * cr, luma - 0.344136 * cb - 0.714136 * cr, luma + 1.772 * cb], axis=2)
    return luma.astype(np.uint64), data, np.rint(colours.clip(0, 255)).astype(np.uint8)


@pytest.mark.parametrize(("across", "down"), [(1, 1), (2, 1), (2, 2), (4, 2)])
def test_raw_ycbcr_is_upsampled_and_converted(across: int, down: int) -> None:
    luma, strip, expected = ycbcr(across, down)
    reference = tuple(number for value in (0, 255, 128, 255, 128, 255) for number in (value, 1))
    data = packed(np.repeat(luma[..., None], 3, 2), 8, 6, t530=(across, down), strip=strip, r532=reference)
    assert np.abs(shown(data).astype(int) - expected).max() <= 1


def test_lab_is_pillows() -> None:
    """Signed a and b in CIELab, offset ones in ICCLab; of 16 bits their high byte."""
    samples = numbers(8, 3)
    expected = shown(packed(samples, 8, 8))
    lab = Image.frombytes("LAB", (WIDTH, HEIGHT), samples.astype(np.uint8).tobytes(), "raw", "LAB").convert(
        "RGB"
    )
    assert np.array_equal(expected, np.asarray(lab))
    assert np.array_equal(shown(packed(samples << np.uint64(8), 16, 8)), expected)
    offset = samples ^ np.array([0, 128, 128], np.uint64)
    assert np.array_equal(shown(packed(offset, 8, 9)), expected)
    assert np.array_equal(shown(packed(offset << np.uint64(8), 16, 9)), expected)


# ---- refusals: by name


@pytest.mark.parametrize(
    ("photometric", "tags", "name"),
    [
        (4, {}, "transparency mask"),
        (10, {}, "ITU L"),
        (32803, {}, "colour filter array"),
        (34892, {}, "linear raw"),
        (32845, {}, "LogLuv"),
        (5, {"t332": (2,)}, "inks other than CMYK"),
        (1, {"t259": (34712,)}, "JPEG 2000"),
        (1, {"t259": (34887,)}, "LERC"),
        (1, {"t339": (5,)}, "complex"),
        (2, {"t258": (5, 6, 5)}, r"differ: \[5, 6\] bits"),
        (1, {"t339": (3,), "t258": (24,)}, "floats of 24 bits"),
        (2, {"t277": (2,), "t258": (8, 8)}, "2 samples a pixel, expected 3"),
        (1, {"t50706": (1, 4)}, "DNG"),
        (1, {"t254": (1,), "t330": (8,)}, "raw file"),
        (1, {"t317": (3,), "t259": (5,)}, "predictor 3|Decode|decoder error|broken"),
    ],
)
def test_what_has_no_colours_here_is_named(photometric: int, tags: dict[str, Any], name: str) -> None:
    with pytest.raises(DecodeError, match=name) as caught:
        decode(
            packed(
                numbers(8, 4 if photometric == 5 else 3 if photometric == 2 else 1), 8, photometric, **tags
            )
        )
    assert caught.value.code == "undecodable"


# ---- hostile ones


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", ["i1", "u2", "f4"])
def test_cut_anywhere_is_truncated(dtype: str, compression: str | None) -> None:
    data = written(
        random(dtype, 3), photometric="rgb", compression=compression, rowsperstrip=7, planarconfig="contig"
    )
    for cut in range(16, len(data) - 1, 131):
        with pytest.raises(DecodeError) as caught:
            decode(data[:cut])
        assert caught.value.code == "truncated", cut


@pytest.mark.slow
def test_what_would_take_long_or_much_is_refused() -> None:
    large = {"t256": (13000,), "t257": (13000,)}
    for tags in (large, {**large, "t278": (1,)}, {"t277": (60000,), "t258": (16,) * 60000}):
        with pytest.raises(DecodeError) as caught:
            decode(packed(numbers(16, 1), 16, 1, **tags))
        assert caught.value.code in ("truncated", "too_large")
    bomb = written(np.zeros((12000, 14000), "u2"), compression="zlib", rowsperstrip=12000)
    with pytest.raises(DecodeError, match="a strip of 336,000,000 bytes") as caught:
        decode(bomb)
    assert caught.value.code == "too_large"
