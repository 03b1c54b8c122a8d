"""Every format of pictures that is known here: its suffixes, and who decodes it.

The one list: what a folder's images are, what a tar's are, what the decoder reads, and what a row says
where nobody decodes it. Vector graphics (SVG, EPS, PDF) have no pixels of their own, and are none of these.
"""

from __future__ import annotations

import importlib.util
import posixpath
from dataclasses import dataclass
from functools import cache

from cnnbatch.types import Code

PILLOW, NOBODY = "pillow", ""
HEIF_EXTRA = "heif"
_PACKAGES = {HEIF_EXTRA: "pillow_heif"}


@dataclass(frozen=True, slots=True)
class PictureFormat:
    """``name`` is Pillow's where it decodes it; ``decoder`` is `PILLOW`, an optional extra, or `NOBODY`."""

    name: str
    suffixes: tuple[str, ...]
    decoder: str = PILLOW


FORMATS = (
    PictureFormat("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")),
    PictureFormat("PNG", (".png", ".apng")),
    PictureFormat("WEBP", (".webp",)),
    PictureFormat("GIF", (".gif",)),
    PictureFormat("BMP", (".bmp", ".dib")),
    PictureFormat("TIFF", (".tif", ".tiff")),
    PictureFormat("PPM", (".ppm", ".pgm", ".pbm", ".pnm", ".pfm")),
    PictureFormat("AVIF", (".avif", ".avifs")),
    PictureFormat("ICO", (".ico",)),
    PictureFormat("JPEG2000", (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx")),
    PictureFormat("PSD", (".psd",)),
    PictureFormat("TGA", (".tga",)),
    PictureFormat("QOI", (".qoi",)),
    PictureFormat("PCX", (".pcx",)),
    PictureFormat("SGI", (".sgi",)),
    PictureFormat("DDS", (".dds",)),
    PictureFormat("HEIF", (".heic", ".heif", ".hif", ".heics", ".heifs"), HEIF_EXTRA),
    PictureFormat("JPEG XL", (".jxl",), NOBODY),
    PictureFormat("JPEG XR", (".jxr", ".wdp", ".hdp"), NOBODY),
    PictureFormat("OpenEXR", (".exr",), NOBODY),
    PictureFormat("Radiance HDR", (".hdr",), NOBODY),
    PictureFormat("PAM", (".pam",), NOBODY),
    PictureFormat("GIMP's XCF", (".xcf",), NOBODY),
    PictureFormat("PSB", (".psb",), NOBODY),
    PictureFormat("ICNS", (".icns",), NOBODY),
    PictureFormat("BPG", (".bpg",), NOBODY),
    PictureFormat("FLIF", (".flif",), NOBODY),
    PictureFormat("DNG", (".dng",), NOBODY),
    PictureFormat("Canon raw", (".cr2", ".cr3", ".crw"), NOBODY),
    PictureFormat("Nikon raw", (".nef", ".nrw"), NOBODY),
    PictureFormat("Sony raw", (".arw", ".sr2", ".srf"), NOBODY),
    PictureFormat("Olympus raw", (".orf",), NOBODY),
    PictureFormat("Panasonic raw", (".rw2",), NOBODY),
    PictureFormat("Fujifilm raw", (".raf",), NOBODY),
    PictureFormat("Pentax raw", (".pef",), NOBODY),
    PictureFormat("Samsung raw", (".srw",), NOBODY),
    PictureFormat("Sigma raw", (".x3f",), NOBODY),
    PictureFormat("Hasselblad raw", (".3fr", ".fff"), NOBODY),
    PictureFormat("Phase One raw", (".iiq",), NOBODY),
    PictureFormat("Leica raw", (".rwl",), NOBODY),
    PictureFormat("Epson raw", (".erf",), NOBODY),
    PictureFormat("Kodak raw", (".kdc", ".dcr"), NOBODY),
    PictureFormat("Minolta raw", (".mrw",), NOBODY),
    PictureFormat("Mamiya raw", (".mef",), NOBODY),
    PictureFormat("Leaf raw", (".mos",), NOBODY),
    PictureFormat("GoPro raw", (".gpr",), NOBODY),
)

_BY_SUFFIX = {suffix: format for format in FORMATS for suffix in format.suffixes}

SUFFIXES = frozenset(_BY_SUFFIX)
"""What an image's name ends with, in lower case."""

RAW_SUFFIXES = frozenset(
    suffix for suffix, format in _BY_SUFFIX.items() if format.name == "DNG" or format.name.endswith(" raw")
)
"""Cameras' raw files: beside a JPEG of the same stem they are that picture's companions."""

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
"""What such a JPEG's name ends with."""

BY_PILLOW = tuple(format.name for format in FORMATS if format.decoder == PILLOW)

_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"IIRO": "Olympus raw",
    b"IIRS": "Olympus raw",
    b"MMOR": "Olympus raw",
    b"IIU\0": "Panasonic raw",
    b"FUJIFILMCCD-RAW": "Fujifilm raw",
    b"FOVb": "Sigma raw",
    b"\0MRM": "Minolta raw",
    b"II\x1a\0\0\0HEAPCCDR": "Canon raw",
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),
    b"\0\0\1\0": "ICO",
    **dict.fromkeys((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), "JPEG2000"),
    **dict.fromkeys((b"\xff\x0a", b"\0\0\0\x0cJXL "), "JPEG XL"),
    b"II\xbc\1": "JPEG XR",
    b"\x76\x2f\x31\x01": "OpenEXR",
    **dict.fromkeys((b"#?RADIANCE", b"#?RGBE"), "Radiance HDR"),
    b"gimp xcf": "GIMP's XCF",
    b"8BPS\0\1": "PSD",
    b"8BPS\0\2": "PSB",
    b"qoif": "QOI",
    b"DDS ": "DDS",
    **dict.fromkeys((b"\n\0\1", b"\n\2\1", b"\n\3\1", b"\n\5\1"), "PCX"),
    b"icns": "ICNS",
    b"\x01\xda": "SGI",
    b"BPG\xfb": "BPG",
    b"FLIF": "FLIF",
    b"P7\n": "PAM",
    **dict.fromkeys((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf", b"PF"), "PPM"),
}
_TGA_FOOTER = b"TRUEVISION-XFILE.\0"
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1", b"mif2")


def suffix_of(name: str) -> str:
    """Return a name's suffix in lower case, with its dot; empty without one."""
    return posixpath.splitext(name)[1].lower()


def recognise(data: bytes) -> str:
    """Return the name of a file's format by its bytes; empty where they tell none."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _of_brand(data)
    if found := next((name for magic, name in _MAGIC.items() if data.startswith(magic)), ""):
        return found
    return "TGA" if data.endswith(_TGA_FOOTER) else ""


@cache
def has_extra(name: str) -> bool:
    """Say whether an optional decoder is installed."""
    return name in _PACKAGES and importlib.util.find_spec(_PACKAGES[name]) is not None


def lacks_decoder(name: str, suffix: str = "") -> str:
    """Return why nobody here decodes a format, or a file of this suffix; empty where somebody does."""
    format = next((one for one in FORMATS if one.name == name), None) or _BY_SUFFIX.get(suffix)
    if format is None or format.decoder == PILLOW or has_extra(format.decoder):
        return ""
    if format.decoder == NOBODY:
        return f"{format.name}: there is no decoder for it here; convert it, as to JPEG, PNG or TIFF"
    return (
        f"{format.name}: install the optional extra that decodes it, pip install 'cnnbatch[{format.decoder}]'"
    )


def why_refused(code: Code, message: str, *names: str) -> str:
    """Return a refusal's message; where nobody decodes files called so, the format by its name first."""
    if code != "undecodable" or "there is no decoder" in message or "optional extra" in message:
        return message
    lacking = (lacks_decoder("", suffix_of(name.split("?")[0])) for name in names)
    return next((f"{why} ({message})" for why in lacking if why), message)


def _of_brand(data: bytes) -> str:
    """Return what a file in ISO boxes is, by its major brand, else by those that it is compatible with."""
    size = int.from_bytes(data[:4], "big")
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, min(size, 256), 4))]
    if brands[0] == b"crx ":
        return "Canon raw"
    if any(brand in _AVIF_BRANDS for brand in brands):
        return "AVIF"
    return "HEIF" if any(brand in _HEIF_BRANDS for brand in brands) else ""
