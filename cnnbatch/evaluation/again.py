"""Judges an output again as it was judged, and writes its report anew, without what was forgotten since."""

from __future__ import annotations

from collections.abc import Iterator

from cnnbatch.config.output import Evaluate
from cnnbatch.evaluation import UNUSED, Terms, evaluate
from cnnbatch.evaluation.face_lists import read_face_list
from cnnbatch.evaluation.recognition import evaluate_faces
from cnnbatch.evaluation.truths import Aligned
from cnnbatch.output.evaluation import Evaluation, read_evaluation
from cnnbatch.output.folder import Output
from cnnbatch.output.reader import Reader
from cnnbatch.output.rewriting import Touched, sha256
from cnnbatch.report import write_report
from cnnbatch.storage import NotFound, Storage, redact

_REPORT = "report.html"


def again(output: Output) -> tuple[Touched, ...]:
    """Write the evaluation and the report of an output anew, each where it is there; return what was written.

    Raises what `evaluate` raises, and UserError where a list of faces is not there any more.
    """
    before = {uri: sha256(output.storage.read(uri)) for uri in _written(output)}
    known = read_evaluation(output.uri, output.storage)
    if known is not None:
        _judge(output, known)
    if output.path(_REPORT) in before:
        write_report(output.uri, output.storage)
    return tuple(Touched(uri, digest, _digest(output, uri)) for uri, digest in before.items())


def _written(output: Output) -> Iterator[str]:
    """Yield the addresses of an output's evaluation and report, as far as they are there."""
    tables = (f"evaluation/{name}" for name in output.names("evaluation") if "/" not in name)
    for name in ("evaluation.json", *tables, _REPORT):
        uri = output.path(*name.split("/"))
        if output.storage.exists(uri):
            yield uri


def _digest(output: Output, uri: str) -> str | None:
    try:
        return sha256(output.storage.read(uri))
    except NotFound:
        return None


def _judge(output: Output, known: Evaluation) -> None:
    """Judge an output by what it was judged by: its job's truth, another one, or a list of faces."""
    result = Reader(output.uri, output.storage)
    terms = Evaluate.model_validate(result.settings.get("evaluate") or {})
    listed = terms.truth if terms.truth and redact(terms.truth) == known.truth else known.truth
    faces = read_face_list(listed, Storage())
    if faces is not None:
        evaluate_faces(result, faces, listed, terms.model_copy(update={"slices": tuple(known.slices)}))
        return
    aligned = Aligned(output.path("evaluation", "truth"), known.notes.get(UNUSED, 0))
    truth = aligned if known.truth.endswith("/evaluation/truth") else None  # The output may have moved since.
    evaluate(output.uri, output.storage, Terms([*known.slices], known.aliases or None, truth))
