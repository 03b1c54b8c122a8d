"""The evaluation's numbers as words: value, interval, the count behind them, and what each name means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cnnbatch.humanize import decimal, number
from cnnbatch.metrics import Value
from cnnbatch.output import evaluation as judged
from cnnbatch.output.evaluation import Evaluation

MOST_NOTES = 20
MOST_SLICE_METRICS = 4
_UNBOUNDED = ("log_loss", "failed_")  # Where 1 is not the best that there can be.
_KINDS = {"keypoint_": "by keypoints", "mask_": "by masks", "": "by boxes"}  # The most specific first.
_SEGMENTS = ("PQ", "SQ", "RQ")  # How the numbers of segments begin; they are a group of their own.
_OF_SEGMENTS = _SEGMENTS[0]
_PIXELS = frozenset(
    {"mIoU", "mIoU_per_image", "pixel_accuracy", "mean_accuracy", "frequency_weighted_IoU"}
    | {"boundary_F1", "boundary_IoU"}
)
"""The numbers of maps, which are a group of their own beside those of objects."""
_OF_PIXELS = "mIoU"
_GROUPS = {_OF_SEGMENTS: "by segments", _OF_PIXELS: "by pixels", **_KINDS}
_SIZES = {"s": "small objects, below 32² pixels", "m": "objects of 32² to 96² pixels", "l": "large objects"}
_MEANINGS = {
    "top1": "images whose best label is the true one",
    "top5": "images whose true label is among the best five",
    "precision_macro": "mean over the classes of the share of their predictions that are right",
    "recall_macro": "mean over the classes of the share of their images that are found",
    "F1_macro": "mean over the classes of the harmonic mean of precision and recall",
    "precision_weighted": "the same, each class by its images",
    "recall_weighted": "the same, each class by its images",
    "F1_weighted": "the same, each class by its images",
    "log_loss": "mean of the negative logarithm of the true class's probability; 0 is best",
    "ECE": "expected calibration error: how far confidence is from accuracy; 0 is best",
    "AP": "average precision, mean over the classes and over IoU from 0.5 to 0.95",
    "AP50": "average precision at IoU 0.5",
    "AP75": "average precision at IoU 0.75",
    **{f"AP{size}": f"average precision of {what}" for size, what in _SIZES.items()},
    **{f"AR{most}": f"average recall of the best {most} of each image and class" for most in (1, 10, 100)},
    **{f"AR{size}": f"average recall of {what}" for size, what in _SIZES.items()},
    "AR": "average recall, mean over the similarities",
    "AR50": "average recall at a similarity of 0.5",
    "AR75": "average recall at a similarity of 0.75",
    "VOC2007_AP50": "average precision at IoU 0.5 by PASCAL VOC 2007's eleven recalls",
    "VOC2010_AP50": "average precision at IoU 0.5 by the whole curve, as PASCAL VOC since 2010",
    "localization_accuracy": "images whose label and box (IoU 0.5) are those of an object",
    "box_accuracy": "images whose box has an IoU of 0.5 or more with an object's",
    "mean_IoU": "mean over the images of the IoU with the best box",
    "mIoU": "mean over the classes of the IoU of their pixels, those of all images together",
    "mIoU_per_image": "mean over the images of each one's own mean IoU, over the classes that it has",
    "pixel_accuracy": "pixels of the right class",
    "mean_accuracy": "mean over the classes of the share of their pixels that are found",
    "frequency_weighted_IoU": "mean IoU, each class by its pixels",
    "boundary_F1": "F1 of the boundaries within 0.75 % of the diagonal, mean over the images",
    "boundary_IoU": "mean over the classes of the IoU of their pixels no farther than 2 % from a boundary",
    **{
        f"{name}{suffix}": f"{what}, mean over the classes{of}"
        for suffix, of in (("", ""), ("_things", " of things"), ("_stuff", " of stuff"))
        for name, what in (
            ("PQ", "panoptic quality: SQ times RQ"),
            ("SQ", "segmentation quality: mean IoU of the segments that are found"),
            ("RQ", "recognition quality: F1 of finding segments at IoU above 0.5"),
        )
    },
    "recall@10": "the 10 nearest by exact search that a search finds",
    "recall@1": "searches that find the nearest by exact search",
    "recall_of_matches": "those of the 10 nearest that are matches which a search finds",
    "AUC": "area under the ROC curve",
    "EER": "equal error rate: where false accepts are as frequent as false rejects; 0 is best",
    "verification_accuracy": "1 - EER: the share of pairs told right where both errors are as frequent",
    "pairs": "how many pairs of two pictures were judged",
    "pictures_left_out": "pictures whose pairs were not judged, since there are too many",
}


class Band(NamedTuple):
    """An interval and its value on a scale from 0 to 100."""

    low: float
    width: float
    value: float


class Number(NamedTuple):
    """One of the evaluation's numbers in words, and ``of`` how many it is; ``reason`` says why it is none."""

    name: str
    value: str
    interval: str
    of: str
    reason: str
    band: Band | None


class NumberGroup(NamedTuple):
    """Numbers of one kind; ``how`` says which where there are several."""

    how: str
    numbers: Sequence[Number]


@dataclass(frozen=True, slots=True)
class Sliced:
    """The main numbers by the values of a column: a row a value, beside its count a number a name."""

    column: str
    names: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[Number]]]


def kinds(metrics: Mapping[str, Value]) -> dict[str, str]:
    """Return by what objects were judged: the prefix of its numbers' names, and its words where needed.

    The most specific comes first; one that has no AP is none.
    """
    known = {
        prefix: how
        for prefix, how in _KINDS.items()
        if metrics.get(f"{prefix}AP", Value(None)).value is not None
    }
    return known if len(known) > 1 else dict.fromkeys(known, "")


def groups(metrics: Mapping[str, Value]) -> list[NumberGroup]:
    """Return all numbers by kind, in the order of the evaluation, which begins with the most important one.

    A group without any value is left to `lacking`.
    """
    found: dict[str, list[Number]] = {}
    for name, value in metrics.items():
        found.setdefault(_group(name, metrics), []).append(_number(name, value))
    return [NumberGroup(how, found[group]) for group, how in _shown(metrics).items() if group in found]


def lacking(metrics: Mapping[str, Value]) -> list[str]:
    """Return what is to be said of the kinds without any value."""
    shown = _shown(metrics)
    reasons: dict[str, str] = {}
    for name, value in metrics.items():
        if (group := _group(name, metrics)) not in shown:
            reasons.setdefault(group, value.reason or "not known")
    return [f"no numbers {_GROUPS[group]}: {reason}" for group, reason in reasons.items()]


def slices(evaluation: Evaluation) -> list[Sliced]:
    """Return a table of the main numbers for each column by whose values they were taken, too."""
    first = groups(evaluation.metrics)[:1]
    known = [one.name for group in first for one in group.numbers if not one.reason]
    names = known[:MOST_SLICE_METRICS]
    return [
        Sliced(column, names, [_slice(value, metrics, names) for value, metrics in values.items()])
        for column, values in evaluation.slices.items()
        if names
    ]


def notes(evaluation: Evaluation) -> list[str]:
    """Return what was counted beside the numbers, the most frequent first, and which kinds have none."""
    return [*lacking(evaluation.metrics), *judged.notes(evaluation, MOST_NOTES)]


def meanings(metrics: Mapping[str, Value]) -> dict[str, str]:
    """Return what the numbers mean, of those whose names are known here."""
    return {name: meaning for name in metrics if (meaning := meaning_of(name))}


def meaning_of(name: str) -> str:
    """Return what a number means, in some words; empty where that is not known."""
    if name.startswith("TAR@FAR="):
        return f"true accepts where a share of {name.partition('=')[2]} is falsely accepted"
    prefix = _prefix(name)
    known = _MEANINGS.get(name.removeprefix(prefix), "")
    return f"{known}, {_KINDS[prefix]}" if known and prefix else known


def share(value: float | None) -> str:
    """Return a number between 0 and 1 as tables have it; a dash for none."""
    return "–" if value is None else f"{value:.3f}" if abs(value) <= 1 else decimal(value)


def _shown(metrics: Mapping[str, Value]) -> dict[str, str]:
    """Return the groups that are shown, and which they are in words where there are several."""
    known = kinds(metrics)
    first, last = ([one] if _has(metrics, one) else [] for one in (_OF_SEGMENTS, _OF_PIXELS))
    groups = [*first, *known, *(last if known else [])]
    return {group: _GROUPS[group] if len(groups) > 1 else "" for group in groups} or {"": ""}


def _has(metrics: Mapping[str, Value], name: str) -> bool:
    return metrics.get(name, Value(None)).value is not None


def _group(name: str, metrics: Mapping[str, Value]) -> str:
    if name.startswith(_SEGMENTS):
        return _OF_SEGMENTS
    return _OF_PIXELS if name in _PIXELS and "AP" in metrics else _prefix(name)


def _prefix(name: str) -> str:
    return next(prefix for prefix in _KINDS if name.startswith(prefix))


def _slice(value: str, metrics: Mapping[str, Value], names: Sequence[str]) -> tuple[str, str, list[Number]]:
    found = [_number(name, metrics.get(name, Value(None))) for name in names]
    return value, found[0].of, found


def _number(name: str, value: Value) -> Number:
    if value.value is None:
        return Number(name, "none", "", "", value.reason or "not known", None)
    say = decimal if name.startswith("failed_") else share
    known = "" if value.low is None or value.high is None else f"{say(value.low)} to {say(value.high)}"
    return Number(
        name=name,
        value=say(value.value),
        interval=known,
        of=number(value.count),
        reason="",
        band=None if name.startswith(_UNBOUNDED) else _band(value),
    )


def _band(value: Value) -> Band | None:
    if value.value is None or value.low is None or value.high is None or value.high > 1:
        return None
    return Band(
        round(100 * value.low, 2), round(100 * (value.high - value.low), 2), round(100 * value.value, 2)
    )
