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
    "mask pixels that agree": "pixels of the small masks of matched boxes on which both say the same",
    "largest change of an embedding": "by how much the embedding of a face differs, as a part of its length",
    "pairs decided otherwise": "pairs of images that are alike by one and not by the other",
    "least cosine of embeddings": "cosine of the two directions, for the image where they differ most",
    "pixels of the same class": "pixels of a map with the same class, the mean of the images",
    "mean |Δ confidence|": "by how much a map's mean confidence differs, on average",
    "numbers that agree": "numbers of the output that differ by one part in a hundred at most",
}
WHY = {
    "not measured": "Ran by {name}, without measuring: {reason}.",
    "nothing else": "Ran by {name}: no other way could be measured.",
    "nothing faster": "Ran by {name}: no other way that gives the same results was clearly faster.",
    "faster": "Ran by {name}, {times} times as fast as eager fp32: {reason}.",
    "chosen": "Ran by {name}: {reason}.",
}
"""Why a way was taken, by what measuring found."""

MIXED = {
    "precision": "Its parts were made in several precisions, so scores may differ a little from part to part:"
    " {}.",
    "backend": "Its parts were run by several backends: {}.",
}
"""What is said where the parts of one output differ in a field of their footers."""

NOT_RECORDED = "a way that is not recorded"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>()\[\]]+")
_DAMAGED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, UserError)


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


class TunedDevice(NamedTuple):
    """A kind of device and by what its workers ran; ``ways`` is empty where nothing was measured."""

    name: str
    why: str
    ways: Sequence[Way]

    @property
    def meanings(self) -> Mapping[str, str]:
        """What the guard's numbers mean, of those that it measured."""
        names = {check.name for way in self.ways for check in way.checks}
        return {name: meaning for name, meaning in MEANINGS.items() if name in names}


def devices(output: Output) -> list[TunedDevice]:
    """Return each kind of device that has measured, or said why not; none where a record is damaged."""
    try:
        return [
            TunedDevice(_device_name(device), trials.why(), trials.ways())
            for device, trials in _records(output)
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
    counted = {field: _counts(footers, field) for field in MIXED}
    return [MIXED[field].format(_listed(counts)) for field, counts in counted.items() if len(counts) > 1]


def on_cpu(output: Output) -> list[str]:
    """Say which operators an accelerator lacks, which the CPU ran in its place."""
    try:
        lacking = sorted({name for one in output.settings().values() for name in one["operators_on_cpu"]})
    except _DAMAGED:
        return []
    return [f"The CPU ran what the accelerator lacks: {', '.join(lacking)}."] if lacking else []


class _Trial:
    """One trial of a record; ``rate`` is 0 where it was not timed."""

    def __init__(self, kept: Mapping[str, Any]) -> None:
        self.verdict, self.batch, self.rate = kept["verdict"], int(kept["batch"]), kept["rate"] or 0.0
        self.agreement, self.limits = kept["agreement"], kept.get("limits") or {}
        self.on_device = kept.get("decoder", "cpu") != "cpu"  # Earlier outputs decoded on the host only.
        self.precision = f"{kept['precision']} with TF32" if kept["tf32"] else str(kept["precision"])
        self.backend = kept["backend"]
        self.is_eager_fp32 = (self.precision, self.backend, self.on_device) == ("fp32", "eager", False)
        # In a line, without what is secret in addresses.
        self.reason = _ADDRESS.sub(lambda found: redact(found[0]), " ".join(str(kept["reason"]).split()))

    @property
    def name(self) -> str:
        decoder = ", decoding on the GPU" if self.on_device else ""
        return f"{BACKENDS.get(self.backend, self.backend)} {self.precision}{decoder}"

    def checks(self) -> list[Check]:
        return [_check(name, value, self.limits.get(name) or {}) for name, value in self.agreement.items()]


class _Trials:
    """All trials on one kind of device."""

    def __init__(self, trials: Sequence[_Trial]) -> None:
        self._trials = trials
        self._chosen = [trial for trial in trials if trial.verdict == "chosen"][0]
        self._reference = next((one for one in trials if one.is_eager_fp32 and one.rate), None)
        self._fastest = max(one.rate for one in trials)

    def ways(self) -> list[Way]:
        """Return the ways, the fastest first; none where nothing was measured."""
        if len(self._trials) == 1:
            return []
        return [self._way(one) for one in sorted(self._trials, key=lambda one: -one.rate)]

    def why(self) -> str:
        """Return why the chosen way was taken, in a sentence."""
        chosen = self._chosen
        reason, times = chosen.reason.rstrip("."), self._times(chosen)
        return WHY[self._found()].format(name=chosen.name, reason=reason, times=times)

    def _found(self) -> str:
        """Return what measuring found: a key of `WHY`."""
        if len(self._trials) == 1:
            return "not measured"
        if self._chosen.is_eager_fp32:
            others = any(one.rate and not one.is_eager_fp32 for one in self._trials)
            return "nothing faster" if others else "nothing else"
        is_faster = self._times(self._chosen) and not self._chosen.on_device  # The network's rate alone.
        return "faster" if is_faster else "chosen"

    def faster(self) -> str:
        """Return the chosen way and how much faster it is; nothing where it is eager fp32 or not measured."""
        chosen, times = self._chosen, self._times(self._chosen)
        if chosen.is_eager_fp32 or not times:
            return ""
        gain = "decoding on the GPU" if chosen.on_device else f"{times} times eager fp32"
        return f"{chosen.backend} {chosen.precision}, {gain}"

    def _way(self, trial: _Trial) -> Way:
        chosen, checks = trial is self._chosen, trial.checks()
        is_said = chosen or any(check.beyond for check in checks)  # By the sentence, or by the checks.
        return Way(
            name=trial.name,
            batch=trial.batch,
            rate=decimal(trial.rate) if trial.rate else "",
            share=trial.rate / self._fastest if self._fastest else 0.0,
            times=self._times(trial),
            checks=checks,
            note="" if checks or not trial.rate else self._uncompared(trial),
            verdict=self._verdict(trial),
            reason="" if is_said else trial.reason,
            chosen=chosen,
        )

    def _times(self, trial: _Trial) -> str:
        if self._reference is None or not trial.rate:
            return ""
        return decimal(trial.rate / self._reference.rate)

    def _uncompared(self, trial: _Trial) -> str:
        """Say why a trial was not compared with eager fp32, or where its way was."""
        if trial is self._reference:
            return "the reference"
        first = next(one for one in self._trials if one.name == trial.name)
        return "not compared" if first is trial else f"as in batches of {first.batch}"

    def _verdict(self, trial: _Trial) -> str:
        if trial.verdict == "slower" and trial.rate > self._chosen.rate:
            return "hardly faster"
        return VERDICTS.get(trial.verdict, str(trial.verdict))


def _records(output: Output) -> list[tuple[str, _Trials]]:
    """Return each kind of device that has tried something, with its trials."""
    found = [record for _, record in sorted(output.settings().items())]
    return [
        (record["device"], _Trials(list(map(_Trial, record["trials"]))))
        for record in found
        if record and record["trials"]
    ]


def _device_name(device: str) -> str:
    kind, _, name = device.partition(":")
    return {"cuda": name, "cpu": f"CPU with {name}", "mps": "Apple GPU"}.get(kind, device)


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
        value = str(footer.info.get(field) or "")
        counts[BACKENDS.get(value, value) if field == "backend" else value] += footer.rows
    unknown = counts.pop("", 0)
    if counts and unknown:
        counts[NOT_RECORDED] = unknown
    return dict(counts.most_common())


def _listed(counts: Mapping[str, int]) -> str:
    said = [f"{value} for {number(images)} image{'s' * (images != 1)}" for value, images in counts.items()]
    return ", ".join(said)
