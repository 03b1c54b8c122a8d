"""One try to bring an index from the state that it has to the one that its outputs have."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import ceil

import numpy as np

from cnnbatch.cluster.address import cluster_address
from cnnbatch.cluster.parallel import chosen_map, on_ray
from cnnbatch.cluster.process_map import ProcessMap
from cnnbatch.config.compute import Compute, Workers
from cnnbatch.errors import UserError
from cnnbatch.index.approximate import FastScan
from cnnbatch.index.build import SegmentMaker, in_threads, put_codebook, rows_of
from cnnbatch.index.changes import Changes, changes_of
from cnnbatch.index.codebook import LIST_TRAINED_ON, TRAINED_ON, Codebook, evenly, train
from cnnbatch.index.compact import Rewriter
from cnnbatch.index.embeddings import EmbeddedOutput, in_words, open_embedded
from cnnbatch.index.grid import Encoder, encoder_of
from cnnbatch.index.held_out import is_held_out
from cnnbatch.index.local_copy import local_copy, new_copy
from cnnbatch.index.manifest import (
    GROWN,
    Manifest,
    OutputEntry,
    SegmentEntry,
    commit,
    described,
    read_manifest,
)
from cnnbatch.index.named_pictures import require_people
from cnnbatch.index.objects import read_codebook, read_segment
from cnnbatch.index.people import verification_of
from cnnbatch.index.plan import Piece, PlannedSegment, cut
from cnnbatch.index.recall import RecallProbes, least_probes, least_refine
from cnnbatch.index.segments import vectors_of
from cnnbatch.job import IndexJob
from cnnbatch.output.reader import open_output
from cnnbatch.storage import Storage, normalize, redact
from cnnbatch.terminal.screen import Screen
from cnnbatch.types import Map, here

MOST_REFINE = 320
"""From which refine factor on a search costs more than it saves."""

THREADS = 4
"""Cores up to which threads of this process make segments as fast as other processes, which take a second to
start: FAISS, Arrow and NumPy let threads work side by side."""

_TRAINED_FROM = 64  # pieces that give vectors to train on, unless they are very small


@dataclass(frozen=True, slots=True)
class Built:
    """The state that was reached, and how many rows were added to the one before and removed from it.

    ``has_measured``: recall, or how well people are told apart, is new.
    """

    manifest: Manifest
    added: int = 0
    removed: int = 0
    has_measured: bool = False


class Building:
    """What one try works with; the objects of an index are only added here, its state is replaced last."""

    def __init__(self, job: IndexJob, screen: Screen) -> None:
        self._job, self._screen = job, screen
        self._uri, self._storage = normalize(job.output.url), Storage(job.output.storage)
        self._began = time.monotonic()

    def build(self) -> Built | None:
        """Return what was done; None where somebody else has changed the index meanwhile."""
        self._screen.doing("comparing the index with its outputs")
        found = read_manifest(self._uri, self._storage)
        before, etag = found or (None, None)
        manifest, outputs = self._with_outputs(before)
        changes = changes_of(self._uri, self._storage, manifest, outputs)
        manifest = _taking(manifest, changes)
        planned = self._plan(manifest, changes)
        if before is not None and manifest == before and not planned:
            return Built(before)
        if before is None and not planned:
            raise UserError(
                f"{redact(outputs[0].output.uri)} has no embeddings to index\n"
                "  what to do: give an output that has some; cnnbatch failed lists what failed there"
            )
        manifest, added = self._with_segments(manifest, outputs, planned)
        if before is None:
            seconds = round(time.monotonic() - self._began, 3)
            manifest = manifest.model_copy(update={"build_seconds": seconds})
        committed = commit(self._uri, self._storage, manifest, etag)
        removed = sum(map(len, changes.gone.values()))
        measured = (manifest.recall, manifest.verification)
        has_measured = before is None or measured != (before.recall, before.verification)
        return None if committed is None else Built(committed, added, removed, has_measured)

    def _with_outputs(self, manifest: Manifest | None) -> tuple[Manifest, tuple[EmbeddedOutput, ...]]:
        """Return the state with an entry for each output, and the outputs; another network's are refused."""
        section, storage = self._job.index, Storage(self._job.input.storage)
        outputs: list[EmbeddedOutput] = []
        for url in dict.fromkeys(map(normalize, self._job.input.urls)):
            known = [one.url for one in manifest.outputs] if manifest else []
            number = known.index(redact(url)) if redact(url) in known else len(known)
            keep = tuple(manifest.kept) if manifest else section.keep
            output = open_embedded(url, storage, number, keep)
            manifest = manifest or self._empty(output)
            self._require_same(manifest, output)
            if number == len(known):
                entry = OutputEntry(url=redact(url), column=output.column, task=_task_of(url, storage))
                manifest = manifest.model_copy(update={"outputs": (*manifest.outputs, entry)})
            outputs.append(output)
        assert manifest is not None  # There is at least one output.
        people = section.people or manifest.people
        require_people(people, [*manifest.kept], "index.people")
        return manifest.model_copy(update={"people": people}), tuple(outputs)

    def _empty(self, first: EmbeddedOutput) -> Manifest:
        section = self._job.index
        return Manifest(
            space=described(first.space),
            kept={field.name: str(field.type) for field in first.kept},
            segment_rows=section.segment_rows,
            exact_below=section.exact_below,
        )

    def _require_same(self, manifest: Manifest, output: EmbeddedOutput) -> None:
        """Refuse embeddings of another network, and other columns than the index keeps."""
        section, uri = self._job.index, redact(output.output.uri)
        if output.space != manifest.embedding_space:
            raise UserError(
                f"{uri} has embeddings of {in_words(output.space)}, which can't be compared with those of "
                f"{in_words(manifest.embedding_space)}, which the index has\n"
                "  what to do: embed the pictures with the network of the index, or build another index"
            )
        if section.keep is not None and section.keep != tuple(manifest.kept):
            raise UserError(
                f"index.keep: the index keeps {', '.join(manifest.kept) or 'no column'}, which can't be "
                "changed\n  what to do: leave index.keep out, or build another index"
            )
        for field in output.kept:
            if str(field.type) != manifest.kept[field.name]:
                raise UserError(
                    f"{uri}: expected {field.name} of type {manifest.kept[field.name]}, as the index has it, "
                    f"got {field.type}\n  what to do: make that output anew with a column of that type"
                )

    def _plan(self, manifest: Manifest, changes: Changes) -> list[PlannedSegment]:
        """Return the segments that are to be made."""
        if changes.new:
            self._screen.doing("counting the embeddings of new parts")
        apply = self._pool(manifest.segment_rows * len(changes.new))
        return [*cut(changes.counted(apply), manifest.segment_rows)]

    def _with_segments(
        self, manifest: Manifest, outputs: Sequence[EmbeddedOutput], planned: Sequence[PlannedSegment]
    ) -> tuple[Manifest, int]:
        """Return the state with the segments that are planned, and how many rows these have."""
        rows = sum(one.count for one in planned)
        apply = self._pool(rows)
        codebook = read_codebook(self._uri, self._storage, manifest)
        if codebook is None and manifest.live + rows >= manifest.exact_below:
            self._screen.doing("training the codebook")
            codebook = self._trained(manifest, outputs, planned)
            if codebook is not None:
                manifest = self._encoded(manifest, codebook, apply)
        encoder = encoder_of(codebook, rows // workers_of(self._job.compute))
        maker = SegmentMaker(self._uri, self._storage, tuple(outputs), encoder, manifest.state)
        advance = self._screen.stage("index", rows, "embeddings")
        made = []
        for entry in self._made(manifest, maker, planned, apply):
            made.append(entry)
            advance(entry.rows)
        manifest = manifest.model_copy(
            update={"segments": (*manifest.segments, *(one for one in made if one.rows or one.left_out))}
        )
        manifest = self._verified(self._measured(manifest, codebook))
        return manifest, sum(one.rows for one in made)

    def _made(
        self, manifest: Manifest, maker: SegmentMaker, planned: Sequence[PlannedSegment], apply: Map
    ) -> Iterator[SegmentEntry]:
        """Yield segments as they are made; those of a new index with codes are copied at once."""
        copied = not manifest.segments and manifest.codebook is not None
        with new_copy(self._uri, manifest) if copied else nullcontext() as copy:
            if apply is here:
                for made in in_threads(maker.made, planned, min(THREADS, _cores())):
                    entry = maker.put(made)
                    if copy is not None and entry.rows:
                        copy(entry, made.table)
                    yield entry
            else:
                for entry in apply(maker, planned):
                    if copy is not None and entry.rows:
                        copy(entry, read_segment(self._uri, self._storage, entry))
                    yield entry

    def _trained(
        self, manifest: Manifest, outputs: Sequence[EmbeddedOutput], planned: Sequence[PlannedSegment]
    ) -> Codebook | None:
        """Return a codebook trained on vectors from all over; None where there are too few vectors."""
        lists = self._job.index.lists
        enough = max(TRAINED_ON, LIST_TRAINED_ON * lists)
        thin = max(1, (manifest.live + sum(one.count for one in planned)) // enough)
        samples = [
            vectors_of(read_segment(self._uri, self._storage, one))[::thin] for one in manifest.segments
        ]
        samples += [rows_of(outputs, (piece,)).vectors for piece in _spread(planned, enough)]
        vectors = np.concatenate(samples)
        vectors = vectors[~is_held_out(vectors)]
        return train(vectors[evenly(len(vectors), enough)], lists)

    def _encoded(self, manifest: Manifest, codebook: Codebook, apply: Map) -> Manifest:
        """Return the state with a codebook, and with the codes of the rows that are there."""
        rewriter = Rewriter(self._uri, self._storage, Encoder(codebook))
        entries = tuple(apply(rewriter, [(one,) for one in manifest.segments]))
        book = put_codebook(self._uri, self._storage, codebook)
        lists = 0 if codebook.lists is None else len(codebook.lists)
        return manifest.model_copy(update={"segments": entries, "codebook": book, "lists": lists})

    def _measured(self, manifest: Manifest, codebook: Codebook | None) -> Manifest:
        """Return the state with its recall, measured where it is new or the index has grown.

        Raises UserError where it is less than the job asks for.
        """
        known = manifest.recall
        if codebook is None or (known is not None and manifest.live <= GROWN * known.rows):
            return manifest
        self._screen.doing("measuring the recall")
        copy = local_copy(self._uri, self._storage, manifest)
        probes = RecallProbes(copy.vectors, copy.live, self._job.index.match)
        if not len(probes.probes):
            raise UserError(
                f"of {manifest.live:,} embeddings so few are different that the recall can't be measured\n"
                f"  what to do: give index.exact_below={2 * manifest.live}, to have it searched exactly"
            )
        assert copy.codes is not None
        scan = FastScan(codebook, copy.codes, copy.live, manifest.lists)
        target = self._job.index.recall
        # With all lists scanned half of what may be missed is kept for those that are left out then.
        flat = (1 + target) / 2 if manifest.lists else target
        refine, recall = least_refine(
            lambda refine: probes.measure(scan, refine), flat, manifest.refine, MOST_REFINE
        )
        if manifest.lists:
            scanned, recall = least_probes(
                lambda lists: probes.measure(scan.over(lists), refine), target, manifest.lists
            )
            manifest = manifest.model_copy(update={"probes": scanned})
        if recall.at_10 < target:
            raise UserError(
                f"expected recall@10 of at least {target:g}, got {recall.at_10:.4f} with {refine} times 10 "
                "candidates compared; the index stays as it was\n  what to do: give a lower index.recall, or "
                f"index.exact_below={2 * manifest.live} for a new index, which is then searched exactly"
            )
        return manifest.model_copy(update={"refine": refine, "recall": recall})

    def _verified(self, manifest: Manifest) -> Manifest:
        """Return the state with what tells its people apart, measured where that is new or the size another.

        It is another one from a tenth of difference on.
        """
        known = manifest.verification
        if manifest.people is None or not manifest.live:
            return manifest
        rows = (manifest.live, known.rows if known is not None else 0)
        if known is not None and known.people == manifest.people and max(rows) <= GROWN * min(rows):
            return manifest
        self._screen.doing("measuring how well people are told apart")
        copy = local_copy(self._uri, self._storage, manifest)
        return manifest.model_copy(update={"verification": verification_of(copy, manifest)})

    def _pool(self, rows: int) -> Map:
        return pool_of(self._job.compute, rows)


def workers_of(compute: Compute) -> int:
    """Return among how many processes the work of making segments is divided, about."""
    if compute.pool == "inline":
        return 1
    workers = compute.workers.max if isinstance(compute.workers, Workers) else compute.workers
    return _cores() if workers == "auto" else workers


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pool_of(compute: Compute, rows: int) -> Map:
    """Return what makes segments: this process, processes of this machine, or tasks of a Ray cluster."""
    if compute.pool == "inline":
        return here
    if compute.pool == "auto":
        if cluster_address() is None and workers_of(compute) <= THREADS:
            return here
        workers = compute.workers.max if isinstance(compute.workers, Workers) else compute.workers
        return chosen_map(rows, workers, compute)
    number = workers_of(compute)
    return on_ray(compute, number) if compute.pool == "ray" else ProcessMap(number)


def _task_of(url: str, storage: Storage) -> dict[str, object]:
    """Return the task of the job that made an output; empty where the output does not say it."""
    task = open_output(url, storage).settings.get("task")
    return dict(task) if isinstance(task, dict) else {}


def _taking(manifest: Manifest, changes: Changes) -> Manifest:
    """Return the state without the rows that are gone, and with the parts that outputs have now."""
    outputs = [
        one.with_digests(changes.digests[number]) if number in changes.digests else one
        for number, one in enumerate(manifest.outputs)
    ]
    segments = [
        one.without(changes.gone[one.name]) if one.name in changes.gone else one for one in manifest.segments
    ]
    return manifest.model_copy(update={"outputs": tuple(outputs), "segments": tuple(segments)})


def _spread(planned: Sequence[PlannedSegment], most: int) -> list[Piece]:
    """Return pieces from all over what is planned, each of few rows next to each other, ``most`` together."""
    pieces = [piece for one in planned for piece in one.pieces]
    enough = ceil(most * len(pieces) / max(1, sum(len(one.rows) for one in pieces)))
    chosen = [pieces[number] for number in evenly(len(pieces), max(_TRAINED_FROM, enough))]
    each = ceil(most / max(1, len(chosen)))
    middles = [max(0, (len(one.rows) - each) // 2) for one in chosen]
    return [
        Piece(one.output, one.part, one.digest, one.rows[start : start + each])
        for one, start in zip(chosen, middles, strict=True)
    ]
