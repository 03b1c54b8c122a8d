"""Looks at every object of an index, and at how well it is searched: what ``cnnbatch index check`` says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cnnbatch.humanize import counted
from cnnbatch.index.approximate import FastScan
from cnnbatch.index.local_copy import local_copy
from cnnbatch.index.manifest import Manifest, Recall
from cnnbatch.index.objects import DamagedObject, read_codebook, read_segment, unnamed
from cnnbatch.index.recall import RecallProbes
from cnnbatch.storage import Storage

DRIFTED = 0.005
"""By how much recall has fallen when a new index is advised: about the width of its interval."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What is wrong with which objects, how many are no part of the index, and the recall now and before."""

    damaged: Sequence[str]
    unnamed: int
    recall: Recall | None
    before: Recall | None

    @property
    def has_drifted(self) -> bool:
        """Whether the codebook fits what was added worse than what it was trained on."""
        return (
            self.recall is not None
            and self.before is not None
            and self.recall.at_10 < self.before.at_10 - DRIFTED
        )


def check(index: str, storage: Storage, manifest: Manifest) -> Checked:
    """Read all objects of an index, and measure its recall anew where all are whole."""
    damaged = []
    for entry in manifest.segments:
        try:
            read_segment(index, storage, entry)
        except DamagedObject as error:
            damaged.append(str(error).partition("\n")[0])
    try:
        codebook = read_codebook(index, storage, manifest)
    except DamagedObject as error:
        damaged.append(str(error).partition("\n")[0])
        codebook = None
    recall = None
    if codebook is not None and not damaged and manifest.live:
        copy = local_copy(index, storage, manifest)
        assert copy.codes is not None
        match = manifest.recall.match if manifest.recall else None
        probes = RecallProbes(copy.vectors, copy.live, match)
        if len(probes.probes):
            scan = FastScan(codebook, copy.codes, copy.live, manifest.probes)
            recall = probes.measure(scan, manifest.refine)
    return Checked(damaged, len([*unnamed(index, storage, manifest)]), recall, manifest.recall)


def lines(found: Checked) -> Iterator[str]:
    """Yield what was found, for people."""
    yield from found.damaged
    if not found.damaged:
        yield "every object is there, and is what was written"
    if found.unnamed:
        yield f"{counted(found.unnamed, 'object')} of earlier states or stopped builds; compact deletes them"
    if found.recall is not None and found.before is not None:
        yield f"recall@10 {found.recall.at_10:.4f}, {found.before.at_10:.4f} when it was measured before"
    if found.has_drifted:
        yield "the codebook no longer fits: build a new index of all outputs"
