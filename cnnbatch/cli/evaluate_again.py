"""Judges an output again, perhaps by another truth, without predicting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field

from cnnbatch.cluster.parallel import chosen_map
from cnnbatch.config.compute import MOST_WORKERS
from cnnbatch.config.input import Ignored, Input, Relabelling
from cnnbatch.config.mistakes import read_fields
from cnnbatch.config.output import Evaluate
from cnnbatch.config.section import Text
from cnnbatch.errors import UserError
from cnnbatch.evaluation import Terms, evaluate
from cnnbatch.evaluation.face_embeddings import has_embeddings
from cnnbatch.evaluation.face_lists import FaceList, is_no_face_list, read_face_list
from cnnbatch.evaluation.recognition import evaluate_faces
from cnnbatch.evaluation.truths import align
from cnnbatch.index.questions.run import judge_again
from cnnbatch.output.evaluation import Evaluation
from cnnbatch.output.folder import Output
from cnnbatch.output.forgotten import require_whole
from cnnbatch.output.reader import Reader, open_output
from cnnbatch.report import write_report
from cnnbatch.sources import open_source
from cnnbatch.sources.formats import KnownFormat
from cnnbatch.storage import Storage, redact
from cnnbatch.terminal.screen import Screen
from cnnbatch.truth import NO_TRUTH

_OF_FACES = ("face", "absent", "draws")


class EvaluateFields(Evaluate):
    """What may be said when an output is judged again; what is not said is as in its job."""

    format: KnownFormat | None = None
    label: Text | None = None
    split: Text | None = None
    relabel: Relabelling | None = None
    ignore: Ignored | None = None
    aliases: dict[str, str | None] | None = None
    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=MOST_WORKERS)] = Field(
        "auto", description="auto: one for few images, else all CPUs."
    )

    def input_changes(self) -> dict[str, Any]:
        """Return the fields of the job's input that are other ones now."""
        place = self.model_dump(include={"truth", "format", "label", "split"}, exclude_none=True)
        meaning = self.model_dump(include={"relabel", "ignore"}, exclude_none=True)
        return {**({"format": "auto", **place} if place else {}), **meaning}


def evaluate_again(out: str, fields: Sequence[str], screen: Screen) -> Evaluation:
    """Judge the output at ``out`` as ``fields`` say, and write what comes of it and its report there.

    Raises UserError for a mistake in the fields, and where there is no ground truth.
    """
    wanted = read_fields(EvaluateFields, {}, fields, "the fields of evaluate; nothing was read")
    result = open_output(out)
    output = Output(result.uri, Storage())
    require_whole(output)
    if result.settings.get("kind") in ("search", "identify"):
        return _reported(_of_question(result, wanted), output, screen)
    changes, terms = wanted.input_changes(), _terms(result, wanted)
    where = wanted.truth if changes else terms.truth
    faces = _face_list(where, wanted) if where and has_embeddings(result.schema) else None
    _require_meaning(wanted, faces is not None)
    if where and faces is not None:
        return _reported(evaluate_faces(result, faces, where, terms), output, screen)
    aligned = align(_source(result, changes), output, result) if changes else None
    evaluation = evaluate(
        output.uri,
        output.storage,
        Terms(terms.slices, wanted.aliases, aligned),
        apply=chosen_map(len(result), wanted.workers),
        advance=screen.stage("evaluate", len(result)),
    )
    if evaluation is None:
        raise UserError(
            f"{redact(output.uri)} has no ground truth that its predictions can be evaluated against\n"
            "  what to do: say where it lies, as in truth=instances.json"
        )
    return _reported(evaluation, output, screen)


def _of_question(result: Reader, wanted: EvaluateFields) -> Evaluation:
    """Judge what an index answered, by the truth that its job named."""
    if wanted.model_fields_set:
        raise UserError(
            f"{', '.join(sorted(wanted.model_fields_set))}: not for the answers of an index\n"
            "  what to do: give identify.truth to a run with another output"
        )
    return judge_again(result)


def _terms(result: Reader, wanted: EvaluateFields) -> Evaluate:
    """Return how the output is judged: as in its job, but for what is said now."""
    of_job = Evaluate.model_validate(result.settings.get("evaluate") or {})
    said = {name: getattr(wanted, name) for name in Evaluate.model_fields if name in wanted.model_fields_set}
    return of_job.model_copy(update=said)


def _face_list(where: str, wanted: EvaluateFields) -> FaceList | None:
    """Return the list at ``where``; None for a ground truth of another kind, which is no bare CSV file."""
    faces = read_face_list(where, Storage())
    if faces is None and where.lower().endswith(".csv") and wanted.format is None and wanted.label is None:
        raise is_no_face_list("truth", where)
    return faces


def _require_meaning(wanted: EvaluateFields, of_faces: bool) -> None:
    """Refuse fields that say nothing of what is judged: a list of faces, or anything else."""
    listed = {"truth", "slices", *_OF_FACES}
    idle = sorted(wanted.model_fields_set - listed if of_faces else wanted.model_fields_set & {*_OF_FACES})
    if idle:
        about = (
            "not for a list of pairs or people"
            if of_faces
            else "for a list of pairs or people as truth alone"
        )
        raise UserError(f"{', '.join(idle)}: {about}\n  what to do: leave it out")


def _reported(evaluation: Evaluation, output: Output, screen: Screen) -> Evaluation:
    write_report(output.uri, output.storage, partial(screen.stage, "report", unit="pictures"))
    return evaluation


def _source(result: Reader, changes: Mapping[str, Any]) -> Any:
    settings = result.settings.get("input") or {}
    left_out = {"truth": None} if settings.get("truth") == NO_TRUTH else {}
    url = settings.get("url")
    if "truth" in changes and len(result) and isinstance(url, str) and url.lower().endswith(".json"):
        settings = {**settings, "url": _images_folder(result)}  # That file was ground truth itself.
    # What was kept of each image is in its row.
    asked = {**settings, **left_out, "keep": [], **changes}
    return open_source(Input.model_validate(asked), result.input_storage())


def _images_folder(result: Reader) -> str:
    """Return what the keys of an output's images are relative to."""
    batches = result.batches(["key", "uri"])
    rows = (row for batch in batches for row in batch.to_pylist())
    first = next((row for row in rows if row["uri"] is not None), {"uri": "", "key": ""})
    folder: str = first["uri"].removesuffix(first["key"])
    return folder
