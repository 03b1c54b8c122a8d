"""The files of sets that can be fetched: addresses and MD5 are torchvision's own where it tells them.

A SHA-256 beside them was published for the same file, by torchvision's prototypes or by TensorFlow Datasets.
"""

from __future__ import annotations

from collections.abc import Sequence

from cnnbatch.sources.datasets.layouts import Remote


def cifar10() -> Sequence[Remote]:
    """Return the version for Python."""
    from torchvision.datasets import CIFAR10

    sha256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
    return [Remote(CIFAR10.url, CIFAR10.tgz_md5, sha256)]


def voc2007() -> Sequence[Remote]:
    """Return the two halves, which unpack into one tree."""
    return [
        _voc("2007", "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508"),
        _voc("2007-test", "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892"),
    ]


def voc2012() -> Sequence[Remote]:
    """Return the one archive; its test half is not published with its truth."""
    return [_voc("2012", "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb")]


def _voc(year: str, sha256: str) -> Remote:
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    return Remote(DATASET_YEAR_DICT[year]["url"], DATASET_YEAR_DICT[year]["md5"], sha256)


def oxford_iiit_pet() -> Sequence[Remote]:
    """Return images and annotations."""
    from torchvision.datasets import OxfordIIITPet

    known = {
        "images.tar.gz": "67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
        "annotations.tar.gz": "52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
    }
    return [Remote(url, md5, known.get(url.rpartition("/")[2])) for url, md5 in OxfordIIITPet._RESOURCES]


def caltech101() -> Sequence[Remote]:
    """Return the archive of archives."""
    url = "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip"
    return [Remote(url, "3138e1922a9193bfa496528edbbc45d0")]  # Written out in torchvision's method.


def flowers102() -> Sequence[Remote]:
    """Return the images, and the two files that have labels and parts."""
    from torchvision.datasets import Flowers102

    known = {
        "102flowers.tgz": "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
        "imagelabels.mat": "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
        "setid.mat": "46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd",
    }
    prefix = Flowers102._download_url_prefix
    return [Remote(prefix + name, md5, known.get(name)) for name, md5 in Flowers102._file_dict.values()]


def food101() -> Sequence[Remote]:
    """Return the one archive."""
    from torchvision.datasets import Food101

    sha256 = "d97d15e438b7f4498f96086a4f7e2fa42a32f2712e87d3295441b2b6314053a4"
    return [Remote(Food101._URL, Food101._MD5, sha256)]


def dtd() -> Sequence[Remote]:
    """Return the one archive."""
    from torchvision.datasets import DTD

    sha256 = "e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205"
    return [Remote(DTD._URL, DTD._MD5, sha256)]


def imagenette() -> Sequence[Remote]:
    """Return the archive of pictures with a short side of 320 pixels."""
    from torchvision.datasets import Imagenette

    return [Remote(*Imagenette._ARCHIVES["320px"])]


def eurosat() -> Sequence[Remote]:
    """Return the archive of the colour pictures."""
    commit = "c877bcd43f099cd0196738f714544e355477f3fd"
    url = f"https://huggingface.co/datasets/torchgeo/eurosat/resolve/{commit}/EuroSAT.zip"
    return [Remote(url, "c8fa014336c82ac7804f0398fcb19387")]  # Written out in torchvision's method.
