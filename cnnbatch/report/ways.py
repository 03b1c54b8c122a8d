"""By which way through its network an output was made: what was measured and compared, and why one won.

Read from the output's own records, which tell the limits that held then; nothing here imports torch.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cnnbatch.errors import UserError
from cnnbatch.humanize import decimal, number
from cnnbatch.storage import redact

if TYPE_CHECKING:
    from cnnbatch.output.folder import Output
    from cnnbatch.output.reader import Footer

BACKENDS = {"eager": "eager", "compile": "torch.compile", "openvino": "OpenVINO"}
VERDICTS = {
    "other results": "gives other results",
    "not available": "not available here",
    "reference": "only to compare with",
}
MEANINGS = {
    "class agreement": "images with the same best class, of those that eager fp32 is clear about",
    "mean |Δ top-1 probability|": "by how much the best probability differs, on average",
    "boxes matched": "sure boxes of either that the other has, too: same class, nearly the same place",
    "pairs decided otherwise": "pairs of images that are alike by one and not by the other",
    "least cosine of embeddings": "cosine of the two directions, for the image where they differ most",
    "numbers that agree": "numbers of the output that differ by one part in a hundred at most",
}
NOT_RECORDED = "a way that is not recorded"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>()\[\]]+")
_DAMAGED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, UserError)

Trial = Mapping[str, Any]
"""A `speed.candidates.Trial` as JSON values."""


class Check(NamedTuple):
    """What the guard measured, beside its limit."""

    name: str
    value: str
    limit: str
    beyond: bool


class Way(NamedTuple):
    """A way that was tried, or why not; ``note`` stands where there are no ``checks`` of its own."""

    name: str
    batch: int
    rate: str
    share: float
    times: str
    checks: Sequence[Check]
    note: str
    verdict: str
    reason: str
    chosen: bool


class Device(NamedTuple):
    """A kind of device and by what its workers ran; ``ways`` is empty where nothing was measured."""

    name: str
    why: str
    ways: Sequence[Way]

    @property
    def meanings(self) -> Mapping[str, str]:
        """What the guard's numbers mean, of those that it measured."""
        names = {check.name for way in self.ways for check in way.checks}
        return {name: meaning for name, meaning in MEANINGS.items() if name in names}


def devices(output: Output) -> list[Device]:
    """Return each kind of device that has measured, or said why not; none where a record is damaged."""
    try:
        return [
            Device(_device_name(record["device"]), trials.why(), trials.ways())
            for record, trials in _records(output)
        ]
    except _DAMAGED:
        return []


def ran_by(output: Output) -> str:
    """Return by what an output's workers ran, where measuring has found a faster way than eager fp32."""
    try:
        found = {trials.faster() for _, trials in _records(output)}
    except _DAMAGED:
        return ""
    return "; ".join(sorted(found - {""}))


def mixed(footers: Sequence[Footer]) -> list[str]:
    """Say by which ways the parts of one output were made, where it is more than one."""
    precisions, backends = _counts(footers, "precision"), _counts(footers, "backend")
    found = []
    if len(precisions) > 1:
        found.append(
            f"Its parts were made in several precisions, so scores may differ a little from part to part: "
            f"{_listed(precisions)}."
        )
    if len(backends) > 1:
        named = {BACKENDS.get(backend, backend): images for backend, images in backends.items()}
        found.append(f"Its parts were run by several backends: {_listed(named)}.")
    return found


def on_cpu(output: Output) -> list[str]:
    """Say which operators an accelerator lacks, which the CPU ran in its place."""
    try:
        lacking = sorted({name for one in output.settings().values() for name in one["operators_on_cpu"]})
    except _DAMAGED:
        return []
    return [f"The CPU ran what the accelerator lacks: {', '.join(lacking)}."] if lacking else []


class _Trials:
    """All trials on one kind of device."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._trials = trials
        self._chosen = [trial for trial in trials if trial["verdict"] == "chosen"][0]
        self._reference = next((one for one in trials if _is_eager_fp32(one) and one["rate"]), None)
        self._fastest = max(one["rate"] or 0.0 for one in trials)

    def ways(self) -> list[Way]:
        """Return the ways, the fastest first; none where nothing was measured."""
        if len(self._trials) == 1:
            return []
        return [self._way(one) for one in sorted(self._trials, key=lambda one: -(one["rate"] or 0.0))]

    def why(self) -> str:
        """Return why the chosen way was taken, in a sentence."""
        name, reason = _name(self._chosen), _reason(self._chosen).rstrip(".")
        if len(self._trials) == 1:
            return f"Ran by {name}, without measuring: {reason}."
        if _is_eager_fp32(self._chosen):
            others = any(one["rate"] and not _is_eager_fp32(one) for one in self._trials)
            measured = "that gives the same results was clearly faster" if others else "could be measured"
            return f"Ran by {name}: no other way {measured}."
        times = "" if _decodes_on_device(self._chosen) else self._times(self._chosen)  # The network's alone.
        return f"Ran by {name}{f', {times} times as fast as eager fp32' if times else ''}: {reason}."

    def faster(self) -> str:
        """Return the chosen way and how much faster it is; nothing where it is eager fp32 or not measured."""
        times = self._times(self._chosen)
        if _is_eager_fp32(self._chosen) or not times:
            return ""
        way = f"{self._chosen['backend']} {_precision(self._chosen)}"
        if _decodes_on_device(self._chosen):
            return f"{way}, decoding on the GPU"
        return f"{way}, {times} times eager fp32"

    def _way(self, trial: Trial) -> Way:
        chosen, checks, rate = trial is self._chosen, _checks(trial), trial["rate"] or 0.0
        told = chosen or any(check.beyond for check in checks)  # By the sentence, or by the checks.
        return Way(
            name=_name(trial),
            batch=int(trial["batch"]),
            rate=decimal(rate) if rate else "",
            share=rate / self._fastest if self._fastest else 0.0,
            times=self._times(trial),
            checks=checks,
            note="" if checks or not rate else self._uncompared(trial),
            verdict=self._verdict(trial),
            reason="" if told else _reason(trial),
            chosen=chosen,
        )

    def _times(self, trial: Trial) -> str:
        if self._reference is None or not trial["rate"]:
            return ""
        return decimal(trial["rate"] / self._reference["rate"])

    def _uncompared(self, trial: Trial) -> str:
        """Say why a trial was not compared with eager fp32, or where its way was."""
        if trial is self._reference:
            return "the reference"
        first = next(one for one in self._trials if _name(one) == _name(trial))
        return "not compared" if first is trial else f"as in batches of {first['batch']}"

    def _verdict(self, trial: Trial) -> str:
        if trial["verdict"] == "slower" and (trial["rate"] or 0.0) > (self._chosen["rate"] or 0.0):
            return "hardly faster"
        return VERDICTS.get(trial["verdict"], str(trial["verdict"]))


def _records(output: Output) -> list[tuple[dict[str, Any], _Trials]]:
    """Return the settings of each kind of device that has tried something, with its trials."""
    found = [record for _, record in sorted(output.settings().items())]
    return [(record, _Trials(record["trials"])) for record in found if record and record["trials"]]


def _is_eager_fp32(trial: Trial) -> bool:
    way = (trial["precision"], trial["backend"], trial["tf32"], _decodes_on_device(trial))
    return way == ("fp32", "eager", False, False)


def _decodes_on_device(trial: Trial) -> bool:
    return bool(trial.get("decoder", "cpu") != "cpu")  # Outputs of before decoded on the host only.


def _name(trial: Trial) -> str:
    decoder = ", decoding on the GPU" if _decodes_on_device(trial) else ""
    return f"{BACKENDS.get(trial['backend'], trial['backend'])} {_precision(trial)}{decoder}"


def _precision(trial: Trial) -> str:
    return f"{trial['precision']} with TF32" if trial["tf32"] else str(trial["precision"])


def _device_name(device: str) -> str:
    kind, _, name = device.partition(":")
    return {"cuda": name, "cpu": f"CPU with {name}", "mps": "Apple GPU"}.get(kind, device)


def _reason(trial: Trial) -> str:
    """Return a trial's reason in a line, without what is secret in its addresses."""
    return _ADDRESS.sub(lambda address: redact(address[0]), " ".join(str(trial["reason"]).split()))


def _checks(trial: Trial) -> list[Check]:
    limits = trial.get("limits") or {}
    return [_check(name, value, limits.get(name) or {}) for name, value in trial["agreement"].items()]


def _check(name: str, value: float, limit: Mapping[str, float]) -> Check:
    """Return a value and its limit, rounded to the worse side, so that it is seen where it is."""
    kind, bound = next(iter(limit.items()), ("", 0.0))
    within = {"at_least": value >= bound, "at_most": value <= bound}.get(kind, True)
    limit_words = f"{kind.replace('_', ' ')} {bound:g}" if kind else ""
    return Check(name, _rounded(value, kind), limit_words, not within)


def _rounded(value: float, kind: str) -> str:
    if not math.isfinite(value):
        return "not a number"
    turned = math.floor if kind == "at_least" else math.ceil
    return f"{turned(round(10_000 * value, 6)) / 10_000:g}"


def _counts(footers: Iterable[Footer], field: str) -> dict[str, int]:
    """Count images by what the footers of their parts say; nothing where none says anything."""
    counts = Counter[str]()
    for footer in footers:
        counts[str(footer.info.get(field) or "")] += footer.rows
    unknown = counts.pop("", 0)
    if counts and unknown:
        counts[NOT_RECORDED] = unknown
    return dict(counts.most_common())


def _listed(counts: Mapping[str, int]) -> str:
    said = [f"{value} for {number(images)} image{'s' * (images != 1)}" for value, images in counts.items()]
    return ", ".join(said)
