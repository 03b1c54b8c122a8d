"""Judges embeddings by a list: whether two faces are told apart, and whether a person is found among others.

Pairs are verification; people are identification, each picture searched among all others. All embeddings of
listed pictures are in memory, of their similarities a block.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cnnbatch.config.output import Evaluate
from cnnbatch.errors import UserError
from cnnbatch.evaluation.face_embeddings import ListedFaces, listed_faces
from cnnbatch.evaluation.face_lists import FaceList, FacePairList, PeopleList
from cnnbatch.evaluation.face_slices import slice_values
from cnnbatch.evaluation.slicing import by_value
from cnnbatch.metrics import Evaluated, Value, identification, verification
from cnnbatch.metrics.intervals import percentiles
from cnnbatch.output.evaluation import Evaluation, Metrics, write_evaluation
from cnnbatch.output.folder import Output
from cnnbatch.output.forgotten import Forgotten
from cnnbatch.output.reader import Reader
from cnnbatch.storage import redact

FPIR = 0.05
"""The share of searches for strangers that may find somebody, at which misses are counted."""

_BLOCK = 1 << 24  # similarities at once
_WITHOUT = "pictures without a face, which count as failed"


@dataclass(frozen=True, slots=True)
class JudgedFaces:
    """What comes of a list: ``whole``, and ``of`` some of its rows alone, which are given by their places."""

    whole: Evaluated
    of: Callable[[NDArray[np.int64]], Metrics]


def evaluate_faces(result: Reader, faces: FaceList, where: str, terms: Evaluate) -> Evaluation:
    """Judge the embeddings of an output by a list, and write what comes of it there.

    ``where`` is the address of the list, ``terms`` say how it is used. Raises UserError where it names
    pictures that the output lacks, or contradicts itself, and for columns that can't be sliced by. Pictures
    that the output has forgotten do not count.
    """
    faces = faces.without(_forgotten(result, faces.files))
    embeddings = listed_faces(result, faces.files, where, terms.face)
    values = slice_values(result, faces, embeddings, terms.slices)
    if isinstance(faces, FacePairList):
        judged = judge_pairs(faces, embeddings)
    else:
        judged = judge_people(faces, embeddings, terms)
    failed = int((embeddings.counts == 0).sum())
    evaluation = Evaluation(
        task=str((result.settings.get("task") or {}).get("name", "")),
        images=len(faces.files),
        failed=failed,
        truth=redact(where),
        metrics=judged.whole.metrics,
        slices={
            column: {value: judged.of(rows) for value, rows in by_value(each)}
            for column, each in values.items()
        },
        notes=+Counter({_WITHOUT: failed}),
    )
    _write(result, evaluation, judged.whole)
    return evaluation


def _forgotten(result: Reader, files: Sequence[str]) -> set[str]:
    """Return which of the files of a list are forgotten: by its name, or by a key that its path ends with."""
    known = Forgotten.read(Output(result.uri, result.storage))
    if not known:
        return set()
    return {file for file in files if any(map(known.is_whole, _ends(file)))}


def _ends(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[first:]) for first in range(len(parts))]


def _write(result: Reader, evaluation: Evaluation, found: Evaluated) -> None:
    with tempfile.TemporaryDirectory(prefix="cnnbatch-") as folder:
        for name, table in found.tables.items():
            pq.write_table(table, Path(folder) / f"{name}.parquet")
        write_evaluation(result.uri, result.storage, evaluation, Path(folder))


def judge_pairs(pairs: FacePairList, faces: ListedFaces) -> JudgedFaces:
    """Return the numbers of verification, and the table ``pairs``: each with its score and its faces.

    A score is minus the distance, or the cosine, whichever the embeddings are compared by; null where one of
    both pictures has no face.
    """
    place = {file: number for number, file in enumerate(pairs.files)}
    one, other = ([place[file] for file in files] for files in (pairs.first, pairs.second))
    scores, numbers = _scores(faces, one, other)
    people = pairs.people()
    names_a, names_b = ([people[file] for file in files] for files in (pairs.first, pairs.second))
    every = verification.partial(scores, pairs.same, names_a, names_b, pairs.folds)
    found = verification.result(every)
    table = {
        "a": pa.array(pairs.first),
        "b": pa.array(pairs.second),
        "same": pa.array(pairs.same, pa.bool_()),
        "score": pa.array(scores, mask=np.isnan(scores)),
        "row_a": pa.array(faces.rows[one]),
        "row_b": pa.array(faces.rows[other]),
        "face_a": pa.array(numbers[:, 0], mask=numbers[:, 0] < 0),
        "face_b": pa.array(numbers[:, 1], mask=numbers[:, 1] < 0),
    }
    whole = replace(found, tables={**found.tables, "pairs": pa.table(table)})
    return JudgedFaces(whole, lambda rows: verification.result(every.take(rows)).metrics)


def _scores(
    faces: ListedFaces, first: Sequence[int], second: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Return the scores (N,) of pairs of pictures and which of their faces they are of (N, 2).

    Of several faces the two that are most alike count. NaN, and -1, where there is no pair of faces.
    """
    pictures = np.array([first, second], np.int64).reshape(2, -1)
    counts = faces.counts[pictures]
    scores = np.full(len(first), np.nan)
    numbers = np.full((len(first), 2), -1, np.int32)
    single = (counts == 1).all(axis=0)
    places = faces.ends[pictures[:, single]]
    scores[single], numbers[single] = faces.paired(*places), faces.numbers[places].T
    for row in np.flatnonzero((counts > 0).all(axis=0) & ~single):
        a, b = (np.s_[faces.ends[one] : faces.ends[one + 1]] for one in pictures[:, row])
        alike = faces.similarities(faces.vectors[a], faces.vectors[b])
        best = np.unravel_index(int(alike.argmax()), alike.shape)
        scores[row] = alike[best]
        numbers[row] = faces.numbers[a][best[0]], faces.numbers[b][best[1]]
    return scores, numbers


def require_present(listed: PeopleList, terms: Evaluate) -> None:
    """Raise UserError where as many people are to be absent from the gallery as the list has."""
    if terms.absent >= (known := len({*listed.people})):
        raise UserError(
            f"absent: expected fewer people than the {known:,} that the list has, got {terms.absent:,}\n"
            "  what to do: give a smaller number"
        )


def judge_people(listed: PeopleList, faces: ListedFaces, terms: Evaluate) -> JudgedFaces:
    """Return the numbers of identification, each picture searched among all others, a person being one entry.

    Of a person's pictures the one that is most alike counts. ``FNIR@FPIR`` is with ``terms.absent`` people
    absent from the gallery: the mean over ``terms.draws`` draws of them, and its interval the middle 95 % of
    the draws.
    """
    require_present(listed, terms)
    names, persons = np.unique(np.array(listed.people), return_inverse=True)
    searches = _Searches(names, persons, faces)
    draw = np.random.default_rng(0)
    absent = [draw.choice(len(names), terms.absent, replace=False) for _ in range(terms.draws)]
    galleries = [np.arange(len(names)), *(np.delete(np.arange(len(names)), one) for one in absent)]
    parts = [
        [searches.reduced(rows, scores, gallery) for gallery in galleries]
        for rows, scores in searches.blocks()
    ]
    whole, *drawn = (identification.merge(some) for some in zip(*parts, strict=True))
    found = _people_found(whole, drawn)
    return JudgedFaces(
        found, lambda rows: _people_found(whole.take(rows), [one.take(rows) for one in drawn]).metrics
    )


def _people_found(whole: identification.Searches, drawn: Sequence[identification.Searches]) -> Evaluated:
    """Return the numbers of searches in the whole gallery, and in those of the draws."""
    found = identification.result(whole, fpirs=())
    return Evaluated({**found.metrics, **_open_set(drawn)}, {"cmc": found.tables["cmc"]})


def _open_set(drawn: Sequence[identification.Searches]) -> dict[str, Value]:
    """Return the mean FNIR over several draws of absent people, with the middle 95 % of the draws."""
    name = f"FNIR@FPIR={verification.written(FPIR)}"
    found = [identification.result(one, fpirs=(FPIR,), replicates=2).metrics[name] for one in drawn]
    known = [one.value for one in found if one.value is not None]
    count = sum(one.count for one in found)
    if not known:
        return {name: replace(found[0], count=count)} if found else {}
    low, high = percentiles(np.array(known))
    return {name: Value(float(np.mean(known)), low, high, count)}


@dataclass(frozen=True, slots=True)
class _Searches:
    """Each picture searched among all others; ``persons`` (N,) are places in ``names`` of who is in it."""

    names: NDArray[np.str_]
    persons: NDArray[np.intp]
    faces: ListedFaces

    def blocks(self) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float64]]]:
        """Yield some pictures and how alike each is to the most similar other picture of each person, (M, P).

        NaN where either has no face.
        """
        pictures = np.repeat(np.arange(len(self.persons)), self.faces.counts)  # of each face
        order = np.argsort(self.persons[pictures], kind="stable")
        entries, starts = np.unique(self.persons[pictures][order], return_index=True)
        step = max(1, _BLOCK // max(1, len(pictures)))
        for start in range(0, len(self.persons), step):
            rows = np.arange(start, min(start + step, len(self.persons)))
            scores = np.full((len(rows), len(self.names)), -np.inf)
            probes = np.arange(self.faces.ends[rows[0]], self.faces.ends[rows[-1] + 1])
            if len(probes):
                alike = self.faces.similarities(self.faces.vectors[probes], self.faces.vectors[order])
                alike[pictures[probes][:, None] == pictures[order]] = -np.inf
                best = np.maximum.reduceat(alike, starts, axis=1)
                np.maximum.at(scores, (pictures[probes][:, None] - start, entries), best)
            scores[np.isinf(scores)] = np.nan
            yield rows, scores

    def reduced(
        self, rows: NDArray[np.intp], scores: NDArray[np.float64], gallery: NDArray[np.intp]
    ) -> identification.Searches:
        """Return the searches of the pictures ``rows`` in a gallery of some people, without themselves."""
        people = self.persons[rows]
        names = [str(self.names[one]) for one in people]
        failed = self.faces.counts[rows] == 0
        enrolled = [str(self.names[one]) for one in gallery]
        found = identification.partial(names, failed, scores[:, gallery], enrolled)
        has_others = np.bincount(self.persons, minlength=len(self.names))[people] > 1
        return replace(found, mated=found.mated & has_others)
