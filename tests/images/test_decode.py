"""Pillow is the oracle: what it decodes comes out equal to the last bit, what it refuses has a code."""

from __future__ import annotations

import pickle
import random
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cnnbatch.images import formats as picture_formats
from cnnbatch.images import pillow_decode
from cnnbatch.images.decode import VERSION, DecodeError, Limits, decode
from tests.pictures import DEEP, FILES, GRAY16, assert_is_pillows, exif_of, photo, png16, refusal, saved


@pytest.mark.parametrize("name", sorted(FILES.keys() - DEEP))
def test_equals_pillow(name: str) -> None:
    assert_is_pillows(FILES[name]())


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "CMYK"])
def test_every_orientation(kind: str, orientation: int) -> None:
    picture = photo().convert("CMYK") if kind == "CMYK" else photo()
    assert_is_pillows(saved(picture, kind.replace("CMYK", "JPEG"), exif=exif_of(orientation)))


def test_orientations_show_the_same_picture() -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what stores an upright picture so that EXIF rights it
    for orientation, turn in undo.items():
        stored = photo().transpose(Image.Transpose(turn))
        pixels, size = decode(saved(stored, "PNG", exif=exif_of(orientation)))
        assert size == (45, 61)
        assert np.array_equal(pixels.permute(1, 2, 0), np.asarray(photo()))


def test_16_bit_gray_is_its_high_byte() -> None:
    expected = torch.from_numpy((GRAY16 >> 8).astype(np.uint8)).expand(3, -1, -1)
    pgm = b"P5 61 45 65535\n" + GRAY16.astype(">u2").tobytes()
    as_rgb = png16(2, np.dstack([GRAY16] * 3))
    for data in (png16(0, GRAY16), saved(Image.fromarray(GRAY16), "TIFF"), pgm, as_rgb):
        assert torch.equal(decode(data)[0], expected)


def test_memory_is_channels_last_and_writable() -> None:
    for name in ("jpeg", "png", "webp"):
        pixels, _ = decode(FILES[name]())
        assert pixels.permute(1, 2, 0).is_contiguous()
        pixels[0, 0, 0] = 7
    assert decode(saved(photo(), "JPEG", exif=exif_of(6)))[0].permute(2, 1, 0).is_contiguous()


# ---- scaled decoding


@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    least=st.tuples(st.integers(0, 210), st.integers(0, 210)),
    orientation=st.integers(1, 8),
)
def test_scaled_is_never_less_than_needed(
    height: int, width: int, least: tuple[int, int], orientation: int
) -> None:
    asked: list[tuple[int, int]] = []

    def needed(size: tuple[int, int]) -> tuple[int, int]:
        asked.append(size)
        return least

    data = saved(Image.new("RGB", (width, height), "red"), "JPEG", exif=exif_of(orientation))
    pixels, size = decode(data, needed)
    upright = (width, height) if orientation >= 5 else (height, width)
    assert asked == [upright] == [size]
    offers = [tuple(-(-side // divisor) for side in upright) for divisor in (8, 4, 2, 1)]
    good = [offer for offer in offers if offer[0] >= least[0] and offer[1] >= least[1]]
    assert tuple(pixels.shape[1:]) == (good[0] if good else upright)


@pytest.mark.parametrize("orientation", [1, 6, 8])
@pytest.mark.parametrize("divisor", [2, 4, 8])
def test_scaled_is_the_mean(divisor: int, orientation: int) -> None:
    smooth = photo().resize((640, 480), Image.Resampling.BICUBIC)
    data = saved(smooth, "JPEG", quality=95, subsampling=0, exif=exif_of(orientation))
    whole, (height, width) = decode(data)
    small, size = decode(data, lambda size: (size[0] // divisor, size[1] // divisor))
    assert size == (height, width)
    assert tuple(small.shape) == (3, height // divisor, width // divisor)
    mean = torch.nn.functional.avg_pool2d(whole.float(), divisor)
    assert (mean - small).abs().mean() < 1


def test_only_jpeg_is_scaled() -> None:
    assert tuple(decode(FILES["png"](), lambda _: (1, 1))[0].shape) == (3, 45, 61)
    assert tuple(decode(FILES["jpeg progressive"](), lambda _: (1, 1))[0].shape) == (3, 6, 8)
    assert tuple(decode(FILES["jpeg"](), lambda _: None)[0].shape) == (3, 45, 61)


# ---- refusals


def test_codes() -> None:
    assert refusal(b"") == "empty"
    assert refusal(b"hello, world, this is a text") == "undecodable"
    assert refusal(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "undecodable"
    assert refusal(FILES["png"](), Limits(max_pixels=45 * 61 - 1)) == "too_large"
    assert refusal(FILES["jpeg"](), Limits(max_pixels=45 * 61 - 1)) == "too_large"
    assert refusal(FILES["jpeg"](), Limits(max_bytes=100)) == "too_large"
    decode(FILES["jpeg"](), limits=Limits(max_pixels=45 * 61))
    copy = pickle.loads(pickle.dumps(DecodeError("empty", "zero bytes")))  # noqa: S301
    assert (copy.code, copy.message, str(copy)) == ("empty", "zero bytes", "zero bytes")
    assert VERSION.startswith("simplejpeg 1.")


WHOLE_WITHOUT_END = {
    *(name for name in FILES if name.startswith("jpeg")),
    "j2k gray",
    "jp2",
    "jp2 tiles",
    "gif",
}
MAGIC_AT_ITS_END = {"tga"}  # Cut, nothing tells it.


@pytest.mark.parametrize("name", sorted(FILES.keys() - MAGIC_AT_ITS_END))
def test_cut_anywhere_is_truncated_or_whole(name: str) -> None:
    data = FILES[name]()
    whole, _ = decode(data)
    cuts = {*range(16), *range(len(data) - 24, len(data)), *random.Random(0).sample(range(len(data)), 60)}
    codes = []
    for cut in sorted(cuts):
        try:
            assert torch.equal(decode(data[:cut])[0], whole), f"cut at {cut} of {len(data)}: filled up"
        except DecodeError as error:
            codes.append((cut, error.code))
    # A few bytes may not show yet what they were going to be.
    assert {code for cut, code in codes if cut > 16} == {"truncated"}
    if name in WHOLE_WITHOUT_END:
        assert torch.equal(decode(data[: -1 if name == "gif" else -2])[0], whole)
    if name.startswith(("png", "apng")) and name != "apng":
        for lost in range(1, 13):  # Its last chunk, IEND.
            assert torch.equal(decode(data[:-lost])[0], whole)


@pytest.mark.parametrize(
    "name", ["jpeg", "jpeg gray", "jpeg 4:2:2", "jpeg restarts", "jpeg CMYK", "jpeg YCCK"]
)
def test_a_jpeg_cut_and_closed_is_refused(name: str) -> None:
    """Pillow fills up with gray what lies behind the cut."""
    data = FILES[name]()
    start = data.index(b"\xff\xda") + 2
    start += int.from_bytes(data[start : start + 2])  # The scan's header.
    for cut in range(start, len(data) - 8, 7):
        assert refusal(data[:cut] + b"\xff\xd9") == "undecodable"


def test_a_progressive_jpeg_cut_between_scans_is_truncated() -> None:
    data = FILES["jpeg progressive"]()
    for scan in range(2, 9):
        at = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"][scan]
        assert refusal(data[:at]) == "truncated"


def test_a_damaged_jpeg_is_undecodable() -> None:
    smooth = saved(photo().resize((400, 300)), "JPEG")
    at = len(smooth) // 2
    codes = []
    for seed in range(40):
        noise = random.Random(seed).randbytes(200).replace(b"\xff", b"\xfe")
        try:
            decode(smooth[:at] + noise + smooth[at + 200 :])
        except DecodeError as error:
            codes.append(error.code)
    assert len(codes) > 20  # the rest still reads as some picture, for every decoder
    assert set(codes) == {"undecodable"}


def test_harmless_oddities_of_a_jpeg_are_pillows() -> None:
    data = FILES["jpeg"]()
    end = data.rindex(b"\xff\xd9")
    assert_is_pillows(data + b"trailing \xff\xda bytes" * 9)
    assert_is_pillows(data[:end] + bytes(50) + data[end:])  # "extraneous bytes before marker"
    jfif = data.index(b"JFIF") + 5
    assert_is_pillows(data[:jfif] + b"\7" + data[jfif + 1 :])  # "unknown JFIF revision number"


def test_malformed_exif_never_fails_an_image() -> None:
    for noise in (
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"Exif\0\0junk",
    ):
        for kind in ("JPEG", "PNG", "WEBP"):
            data = saved(photo(), kind, exif=noise)
            plain = saved(photo(), kind)
            assert torch.equal(decode(data)[0], decode(plain)[0])


def test_threads_agree() -> None:
    files = [make() for make in FILES.values()] * 3
    alone = [decode(data)[0] for data in files]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda data: decode(data)[0], files))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


# ---- JPEG 2000 of other depths than 8 bits


def test_deep_colours_of_jpeg2000_are_opencvs() -> None:
    """White among them, which Pillow rounds up to black."""
    colours = np.random.default_rng(0).integers(0, 65536, (160, 240, 4)).astype(np.uint16)
    colours[:9], colours[9:18] = 65535, 0
    for rate in (1000, 100):
        for count in (3, 4):
            options = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, rate]
            done, data = cv2.imencode(".jp2", np.ascontiguousarray(colours[..., :count]), options)
            expected = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
            assert done
            assert expected is not None
            pixels = decode(data.tobytes())[0].permute(1, 2, 0).numpy()
            assert np.abs(pixels.astype(int) - expected[..., 2::-1] // 256).max() <= 1
            at = data.tobytes().index(b"\xff\x52") + 13
            with pytest.raises(DecodeError, match="JPEG 2000 with such colours of 16 bits"):
                decode(data.tobytes()[:at] + b"\0" + data.tobytes()[at + 1 :])


def test_few_bits_of_jpeg2000_count_from_their_depth() -> None:
    samples = np.random.default_rng(0).integers(0, 16, (40, 50, 3)).astype(np.uint8)
    middle = Image.fromarray(samples + np.uint8(128 - 8))  # so that four bits are the same about their middle
    data = bytearray(saved(middle, "JPEG2000", no_jp2=True))
    for component in range(3):
        data[42 + 3 * component] = 4 - 1
    pixels = decode(bytes(data))[0].permute(1, 2, 0).numpy()
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, samples * 17)


# ---- metadata is no part of the picture


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


LARGE = zlib.compress(bytes(3 << 20))
LARGE_CHUNKS = {
    "zTXt": chunk(b"zTXt", b"Comment\0\0" + LARGE),
    "iTXt": chunk(b"iTXt", b"Comment\0\1\0\0\0" + LARGE),
    "iCCP": chunk(b"iCCP", b"profile\0\0" + LARGE),
    "tEXt": chunk(b"tEXt", b"Comment\0" + b"x" * (3 << 20)),
    "many": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 19))) * 150,
    "short tRNS": chunk(b"tRNS", b"\0") + chunk(b"eXIf", b"II*\0")[:-1] + b"?",  # libpng passes over both
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE_CHUNKS)
@pytest.mark.parametrize("kind", ["png", "png palette 1 clear", "png RGBA16", "apng"])
def test_a_png_with_large_texts_is_its_picture(kind: str, name: str) -> None:
    data = FILES[kind]()
    for at in (33, len(data) - 12):  # behind IHDR, before IEND
        large = data[:at] + LARGE_CHUNKS[name] + data[at:]
        assert torch.equal(decode(large)[0], decode(data)[0])


def test_a_png_with_large_texts_is_still_turned() -> None:
    data, exif = saved(photo(), "PNG"), exif_of(6).tobytes()
    upright = decode(saved(photo(), "PNG", exif=exif_of(6)))[0]
    hexadecimal = f"\nexif\n{len(exif):8}\n{exif.hex()}\n".encode()
    xmp = b'<x tiff:Orientation="6"/>' + b" " * (2 << 20)
    for turning in (
        chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(hexadecimal)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
    ):
        assert torch.equal(decode(data[:33] + turning + LARGE_CHUNKS["zTXt"] + data[33:])[0], upright)


@pytest.mark.parametrize("kind", ["JPEG", "CMYK", "progressive", "WEBP", "TIFF", "TIFF16", "AVIF"])
def test_large_exif_icc_and_xmp(kind: str) -> None:
    picture = {"CMYK": photo().convert("CMYK"), "TIFF16": Image.fromarray(GRAY16)}.get(kind, photo())
    plain = saved(picture, {"CMYK": "JPEG", "progressive": "JPEG", "TIFF16": "TIFF"}.get(kind, kind),
                  progressive=kind == "progressive")  # fmt: skip
    large = saved(picture, {"CMYK": "JPEG", "progressive": "JPEG", "TIFF16": "TIFF"}.get(kind, kind),
                  progressive=kind == "progressive", icc_profile=bytes(3 << 20),
                  **({} if kind.startswith("TIFF") else {"xmp": b"x" * 60_000}))  # fmt: skip
    assert len(large) > 3 << 20
    assert torch.equal(decode(large)[0], decode(plain)[0])


WITHOUT_DECODER = [
    b"\xff\x0a",
    b"\0\0\0\x0cJXL \r\n\x87\n",
    b"II*\0\x10\0\0\0CR",
    b"FUJIFILMCCD-RAW ",
    b"gimp xcf v011",
    b"\x76\x2f\x31\x01",
    b"#?RADIANCE\n",
]


def test_an_optional_decoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)
    monkeypatch.setattr(pillow_decode, "has_heif", lambda: False)
    monkeypatch.setattr(picture_formats, "has_extra", lambda name: False)
    with pytest.raises(DecodeError, match=r"HEIF: install .* pip install 'cnnbatch\[heif\]'"):
        decode(heic)
    for begin in WITHOUT_DECODER:
        with pytest.raises(DecodeError, match="there is no decoder|ends early") as caught:
            decode(begin + bytes(99))
        assert caught.value.code in ("undecodable", "truncated")


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_heif(orientation: int) -> None:
    """As the plugin has Pillow read it; cut anywhere it is refused."""
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    data = saved(photo(), "HEIF", quality=90, exif=exif_of(orientation).tobytes())
    assert_is_pillows(data)
    for cut in range(20, len(data), 97):
        assert refusal(data[:cut]) in ("truncated", "undecodable")


def test_float_maps() -> None:
    """Debevec's PFM: rows from the bottom, the scale's sign is the byte order."""
    values = np.random.default_rng(3).random((45, 61, 3)).astype("<f4")
    expected = np.rint(values * 255).astype(np.uint8)
    for order, scale in (("<f4", b"-1.0"), (">f4", b"1.0")):
        body = values[::-1].astype(order).tobytes()
        assert np.array_equal(decode(b"PF\n61 45\n" + scale + b"\n" + body)[0].permute(1, 2, 0), expected)
        gray = values[::-1, :, 0].astype(order).tobytes()
        assert np.array_equal(decode(b"Pf\n61 45\n" + scale + b"\n" + gray)[0][1], expected[..., 0])
    assert refusal(b"PF\n61 45\n-1.0\n" + body[:-1]) == "truncated"
    assert refusal(b"PF\n61 45\n-1.0\n" + (values * 9).tobytes()) == "undecodable"
    assert refusal(b"PF\n61000 45000\n-1.0\n" + body) == "too_large"


def photoshop(bits: int, mode: int, samples: bytes, channels: int) -> bytes:
    """A PSD without layers, its planes raw; by Adobe's specification, "Photoshop File Formats"."""
    head = struct.pack(">4sH6xHLLHH", b"8BPS", 1, channels, 45, 61, bits, mode)
    return head + struct.pack(">LLLH", 0, 0, 0, 0) + samples


def test_a_flattened_psd_is_its_planes() -> None:
    planes = np.asarray(photo()).transpose(2, 0, 1)
    data = photoshop(8, 3, planes.tobytes(), 3)
    assert np.array_equal(decode(data)[0], planes)
    gray = photoshop(8, 1, planes[0].tobytes(), 1)
    assert np.array_equal(decode(gray)[0], np.stack([planes[0]] * 3))
    assert {refusal(data[:cut]) for cut in range(40, len(data), 501)} == {"truncated"}
    inked = planes[0] > 100  # as psd-tools and ImageMagick read it: of a bitmap 1 is black
    bitmap = decode(photoshop(1, 0, np.packbits(inked, axis=1).tobytes(), 1))[0]
    assert np.array_equal(bitmap, np.stack([np.where(inked, 0, 255)] * 3))
    with pytest.raises(DecodeError, match="a PSD of 16 bits"):
        decode(photoshop(16, 3, planes.astype(">u2").tobytes(), 3))
    with pytest.raises(DecodeError, match="channels that are no colours"):
        decode(photoshop(8, 7, planes.tobytes(), 3))
