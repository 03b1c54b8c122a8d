"""What job an output was begun for, so that nothing unfinished is taken for another job's.

A job's record is put before anything else, and deleted before anything else where what it began is discarded.
So what has no record, or that of another job, and nothing finished, is discarded, whenever a run was ended.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal

from cnnbatch.config.input import Input
from cnnbatch.errors import UserError
from cnnbatch.output.folder import Output, differences, require_same
from cnnbatch.output.plan_pages import listings_of
from cnnbatch.storage import redact

Kind = Literal["map", "train", "study"]
Note = Callable[[str], None]

_RECORDS: Mapping[str, str] = {"map": "begun", "train": "training/identity", "study": "study"}
_WORDS: Mapping[str, str] = {"map": "predictions", "train": "a training", "study": "a study"}
_OF_MAP = {"settings", "identity", "classes", "unreported", "failed", "plan", "suspects", "truth", "runs"}
"""What a map job has in ``_job/`` that is of no use to another one."""
_STAYS = {"lock", "forgotten"}
_OF_TRIALS = re.compile(r"[^/]+/(model\.json|predictions/part-.*|_job/training/checkpoints/.*)$")
_SHOWN = 3
_NOT_CHOOSING = {"storage", "allow"}
"""Fields of the input that don't say what is planned."""
_ALWAYS = ("limit", "sample", "shard_size")
"""More of the first two adds images to those that are planned; else what is planned stays as it is."""
_MAY_DIFFER = {f"input.{name}" for name in (*_ALWAYS, "inventory")}
"""What may be another one where parts are finished: a later inventory is looked at with ``--new`` only."""


def begin(
    output: Output,
    identity: Mapping[str, Any],
    chosen: Input,
    finished: Collection[int],
    anew: bool,
    note: Note,
) -> None:
    """Record that ``output`` is begun for a map job; what another one left unfinished there is discarded.

    The job has this ``identity`` (`fingerprint.of_job`), and its images are ``chosen`` so. With ``anew`` the
    input is looked at anew, so its choice may be another one. Raises UserError, with what differs, where the
    parts that are ``finished`` are another job's.
    """
    fields, known = _fields(identity, chosen), output.decided("begun")
    if finished:
        output.require_identity(identity)
        _require_same_choice(output, known, fields, anew)
        if known != fields:
            _end_first_listing(output, known, chosen)
    elif known == fields:
        output.undecide("settings", "identity", "classes")
    elif _discard_plan(output):
        note(discarded(output, known, fields))
    # Of parts without an identity the first worker has to say first whether they are this job's.
    if known != fields and not (finished and output.decided("identity") is None):
        output.storage.put(output.path("_job", "begun.json"), json.dumps(fields, indent=1).encode())


def make_room(output: Output, kind: Kind, note: Note) -> None:
    """Discard what a job of another kind left unfinished in ``output``; raises UserError if it finished."""
    tops = {_top(name) for name in output.names("_job")}
    there = (
        "study" if "study" in tops else "train" if "training" in tops else "map" if tops & _OF_MAP else kind
    )
    if there == kind:
        return
    if holds_results(output):
        raise UserError(
            f"{redact(output.uri)} holds {_WORDS[there]}, and this job makes {_WORDS[kind]}\n"
            "  what to do: choose another output"
        )
    if discard_all(output):
        note(f"{_WORDS[there]} that was begun in {redact(output.uri)}, without a result, is discarded")


def holds_results(output: Output) -> bool:
    """Say whether an output has a part, a checkpoint, a trained model, or any of these of a trial."""
    return (
        bool(output.finished())
        or output.storage.exists(output.path("model.json"))
        or any(True for folder in ("training/checkpoints", "trials") for _ in output.names(f"_job/{folder}"))
        or any(_OF_TRIALS.match(name) for name in output.names("trials"))
    )


def discard_all(output: Output) -> bool:
    """Delete all that was begun in an output, but not what it has forgotten; say whether there was any."""
    left = [f"_job/{name}" for name in output.names("_job") if _top(name) not in _STAYS]
    left += _of_trials(output)
    _delete(output, (f"_job/{name}.json" for name in _RECORDS.values()))
    _delete(output, left)
    return bool(left)


def discarded(output: Output, known: Mapping[str, Any] | None, fields: Mapping[str, Any]) -> str:
    """Return the sentence that says what was discarded, and why."""
    what = f"what an unfinished job has left in {redact(output.uri)} is discarded"
    if known is None:
        return f"{what}, since it does not say which job that was"
    lines = [line.strip() for line in differences(known, fields)]
    lines.sort(key=lambda line: not line.startswith("input."))
    more = len(lines) - _SHOWN
    return f"{what}: {'; '.join(lines[:_SHOWN])}{f'; and {more} more' if more > 0 else ''}"


def _fields(identity: Mapping[str, Any], chosen: Input) -> dict[str, Any]:
    """Return what tells a job's plan from another's: its task, and all that names its images."""
    own = {name: value for name, value in identity.items() if name.startswith(("task.", "input."))}
    named = {name.split(".")[1] for name in own if name.startswith("input.")}
    other = chosen.model_dump(mode="json", exclude=_NOT_CHOOSING | named, exclude_defaults=True)
    other |= {name: getattr(chosen, name) for name in _ALWAYS}
    return own | {f"input.{name}": value for name, value in other.items()}


def _require_same_choice(
    output: Output, known: Mapping[str, Any] | None, fields: Mapping[str, Any], anew: bool
) -> None:
    """Refuse another choice of images than that of the finished parts, which the plan does not have."""
    if known is None or anew or output.decided("identity") is None:  # Then a worker compares the parts.
        return
    before, now = ({name: one[name] for name in one if name not in _MAY_DIFFER} for one in (known, fields))
    head = f"{redact(output.uri)} was begun for another job, and one output never mixes two:"
    way_out = "give the job that made this one, look at the input anew (--new), or choose another output"
    require_same(head, before, now, way_out)


def _end_first_listing(output: Output, known: Mapping[str, Any] | None, chosen: Input) -> None:
    """End an unfinished first listing where it stands, since it chose otherwise.

    To go on behind its last image would miss some before it; the next listing compares, and misses none.
    """
    listings = listings_of(output)
    if len(listings) != 1 or listings[0].complete() is not None:
        return
    if images := sum(images for images, _, _ in listings[0].summaries()):
        sample = (known or {}).get("input.sample", chosen.sample)
        listings[0].finish({"images": images, "limit": images, "sample": sample})


def _discard_plan(output: Output) -> bool:
    """Delete a map job's record, then what it has begun, then its evaluation; say whether it had any."""
    left = [f"_job/{name}" for name in output.names("_job") if _top(name) in _OF_MAP]
    if not left:  # Then what is called evaluation there is somebody else's.
        return False
    tables = [name for name in output.names("evaluation") if name.endswith(".parquet")]
    evaluated = [f"evaluation/{name}" for name in tables]
    _delete(output, ["_job/begun.json", *left, "evaluation.json", *evaluated])
    return True


def _of_trials(output: Output) -> list[str]:
    """Return the files of the trials of a study; other folders in a folder called trials are not ours."""
    names = [*output.names("trials")]
    ours = {name.split("/")[0] for name in names if name.split("/")[1:2] == ["_job"]}
    return [f"trials/{name}" for name in names if name.split("/")[0] in ours]


def _top(name: str) -> str:
    """Return which record or folder of ``_job/`` a file there is, or lies in."""
    return name.split("/")[0].removesuffix(".json")


def _delete(output: Output, names: Iterable[str]) -> None:
    for name in names:
        output.storage.delete(output.path(*name.split("/")))
