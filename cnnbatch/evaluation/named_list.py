"""The list of faces that a job names: looked at before its first image, so that no run ends in vain."""

from __future__ import annotations

from cnnbatch.errors import UserError
from cnnbatch.evaluation.face_embeddings import has_embeddings
from cnnbatch.evaluation.face_lists import FaceList, FacePairList, is_no_face_list, read_face_list
from cnnbatch.evaluation.face_slices import known_columns, require_known
from cnnbatch.evaluation.recognition import require_present
from cnnbatch.job import MapJob
from cnnbatch.storage import Storage


def named_list(job: MapJob) -> FaceList | None:
    """Return the list that ``evaluate.truth`` names; None where the job names none.

    Raises UserError where its task gives no embeddings, and for a list that can't judge them: one of other
    columns, one that contradicts itself, or one without what it is to be sliced by.
    """
    terms, columns = job.evaluate, job.task.columns()
    if terms.truth is None:
        return None
    if not has_embeddings(columns):
        raise UserError(
            f"evaluate.truth: a list judges embeddings, and the task {job.task.name} gives none\n"
            "  what to do: give its ground truth in input.truth"
        )
    listed = read_face_list(terms.truth, Storage())
    if listed is None:
        raise is_no_face_list("evaluate.truth", terms.truth)
    if isinstance(listed, FacePairList):
        listed.people()
    else:
        require_present(listed, terms)
    require_known(terms.slices, [*listed.columns, *job.input.keep, *known_columns(columns)])
    return listed
