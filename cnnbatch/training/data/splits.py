"""Which images train, validate and test: as the input has it, else by the hash of each key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cnnbatch.config.input import Input, Subset
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.job import TrainJob
from cnnbatch.sources import open_source
from cnnbatch.sources.datasets import PREFIX
from cnnbatch.sources.files.splits import PARTS, Splits, splits_below
from cnnbatch.sources.formats import FORMATS
from cnnbatch.sources.masks.places import ANNOT
from cnnbatch.sources.recognition import recognise
from cnnbatch.storage import Storage, normalize

_CUTS = {"hash": "by hash", "block": "by blocks of each sequence", "turn": "by turns"}
_IN_FOLDERS = ("auto", "files", "folders", "masks", "object_masks")


@dataclass(frozen=True, slots=True)
class Parts:
    """An input for each part, and in words how they were found; without ``test``, nothing tests."""

    train: Input
    validation: Input
    test: Input | None
    how: str


def parts_of(job: TrainJob, storage: Storage) -> Parts:
    """Return the parts of a job's input; a mistake in it is a `UserError`."""
    chosen = _labelled(job.input, storage)
    if chosen.subset is not None and chosen.subset.by != "hash":
        return _by(chosen, chosen.subset, job, f"by {chosen.subset.by}, as the job says")
    if own := _own_splits(chosen, storage):
        return _by_splits(chosen, own, job, storage)
    if splits := _folders(chosen, storage):
        there = set(splits.parts)
        rule = _rule(chosen, job).model_copy(update={"by": "folder", **_apart(there, job)})
        how = f"by the folders {', '.join(sorted(there))}{_cut(there, job, rule)}"
        beside = [name for name in splits.others if not name.endswith(ANNOT)]  # Those are masks.
        others = f"; {', '.join(beside)} beside them are left out" if beside else ""
        return _by(chosen, rule, job, how + others)
    rule = _rule(chosen, job)
    validate = f"{rule.validation:.0%} validate" if rule.folds is None else _fold(rule)
    return _by(chosen, rule, job, f"{_cut_words(rule)}: {validate}, {rule.test:.0%} test")


def _labelled(chosen: Input, storage: Storage) -> Input:
    """Read plain files as folders that are named by class, which is what a training needs."""
    named = chosen.format != "auto" or chosen.label is not None or chosen.truth is not None
    if named or not isinstance(chosen.url, str) or "#" in chosen.url or _is_named(chosen.url):
        return chosen
    files = recognise(chosen, storage) == "files"
    return chosen.model_copy(update={"format": "folders"}) if files else chosen


def _rule(chosen: Input, job: TrainJob) -> Subset:
    """Return the job's rule, else that of its shares; what is to know new classes is judged by others."""
    given = chosen.subset
    whole = job.task.learns_new_classes and (given is None or (given.group is None and given.cut == "hash"))
    if given is None:
        given = Subset(part="train", validation=job.train.validation, test=job.train.test)
    return given.model_copy(update={"whole_classes": True}) if whole else given


def _cut_words(rule: Subset) -> str:
    return "by class, all images of which are in one part" if rule.whole_classes else _CUTS[rule.cut]


def _apart(given: set[str], job: TrainJob) -> dict[str, float]:
    """Return the shares that are still to be cut from the training images."""
    return {
        "validation": 0.0 if "validation" in given else job.train.validation,
        "test": 0.0 if "test" in given else job.train.test,
    }


def _cut(given: set[str], job: TrainJob, rule: Subset) -> str:
    cut = [f"{share:.0%} for {name}" for name, share in _apart(given, job).items() if share]
    return f"; of those that train, {_cut_words(rule)} {' and '.join(cut)}" if cut else ""


def _by(chosen: Input, rule: Subset, job: TrainJob, how: str) -> Parts:
    def part(name: str) -> Input:
        return chosen.model_copy(update={"subset": rule.model_copy(update={"part": name})})

    has_test = rule.by != "hash" or rule.test > 0 or (rule.per_class is not None and rule.rest == "test")
    return Parts(part("train"), part("validation"), part("test") if has_test else None, how)


def _by_splits(chosen: Input, splits: Mapping[str, str], job: TrainJob, storage: Storage) -> Parts:
    """Take the splits that the data set's makers set apart; what is lacking is cut from the training one."""
    rule = _rule(chosen, job).model_copy(update=_apart(set(splits), job))
    training = chosen.model_copy(update={"split": splits["train"]})
    whole = _by(training, rule, job, "")
    given = {
        name: chosen.model_copy(update={"split": split, "subset": None})
        for name, split in splits.items()
        if name != "train"
    }
    how = f"by the data set's splits {', '.join(splits.values())}"
    if rule.folds is None:
        how += _cut(set(splits), job, rule)
        return Parts(
            whole.train, given.get("validation", whole.validation), given.get("test", whole.test), how
        )
    how += f"; of those that train, {_cut_words(rule)} {_fold(rule)}"
    return Parts(whole.train, whole.validation, _beside_folds(given, storage) or whole.test, how)


def _beside_folds(given: Mapping[str, Input], storage: Storage) -> Input | None:
    """Return what tests where folds validate: all that does not train, or the test where it lies apart."""
    parts = [given[name] for name in ("validation", "test") if name in given]
    if len(parts) == 2:
        both = parts[0].model_copy(update={"split": tuple(str(one.split) for one in parts)})
        return both if _opens(both, storage) else parts[1]
    return parts[0] if parts else None


def _fold(rule: Subset) -> str:
    return f"fold {rule.fold + 1} of {rule.folds} validates"


def _own_splits(chosen: Input, storage: Storage) -> dict[str, str]:
    """Return the data set's own splits by part; nothing where it has none for training."""
    if chosen.split is not None or not _may_split(chosen, storage):
        return {}
    found: dict[str, str] = {}
    for name in ("train", "trainval", "val", "test"):
        if PARTS[name] not in found and _opens(
            chosen.model_copy(update={"split": name, "subset": None}), storage
        ):
            found[PARTS[name]] = name
    return found if "train" in found else {}


def _is_named(url: str) -> bool:
    return url.startswith(PREFIX)


def _may_split(chosen: Input, storage: Storage) -> bool:
    if isinstance(chosen.url, str) and _is_named(chosen.url):
        return True
    if isinstance(chosen.url, str) and "#" in chosen.url:
        return False
    name = recognise(chosen, storage) if chosen.format == "auto" else chosen.format
    return "split" in FORMATS[name].fields


def _opens(chosen: Input, storage: Storage) -> bool:
    try:
        return next(open_source(chosen, storage).refs(), None) is not None
    except (UserError, EnvironmentFault):
        return False


def _folders(chosen: Input, storage: Storage) -> Splits | None:
    """Return the parts that folders of the input are named by, where it is one folder of files."""
    if not isinstance(chosen.url, str) or chosen.format not in _IN_FOLDERS:
        return None
    return splits_below(normalize(chosen.url), storage)
