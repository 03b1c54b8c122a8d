"""The main path of a study without training: case by case predicted and judged, then side by side.

Every case is an ordinary job of kind map with an output and an evaluation of its own. One that has both is
finished, so that an interrupted study goes on with those that are left.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from uuid import uuid4

from cnnbatch.errors import UserError
from cnnbatch.evaluation.named_list import named_list
from cnnbatch.inference.run import RunOptions, Summary, places, run
from cnnbatch.job import StudyCase, StudyJob, cases_of, in_force, to_yaml
from cnnbatch.output import lock
from cnnbatch.output.folder import Output
from cnnbatch.sources import open_source
from cnnbatch.storage import Storage, normalize, redact
from cnnbatch.terminal.screen import Screen
from cnnbatch.training.study.predictions.cases import Comparison, compared, put_table, read_case
from cnnbatch.training.study.predictions.page import write_page
from cnnbatch.training.study.predictions.words import case_line, lines
from cnnbatch.training.study.run import begin, require_data, require_weights, under

_DONE = "predicted"


def study_predictions(job: StudyJob, options: RunOptions | None = None) -> Summary:
    """Predict and judge all cases of a study, or those that are left, and compare them.

    Raises UserError, EnvironmentFault or OutputHeld; what is finished stays, and the same call continues.
    """
    options = options or RunOptions()
    output = Output(normalize(job.output.url), Storage(job.output.storage))
    running = in_force(job, job.lesson)
    trials = cases_of(running)
    done: list[Summary] = []
    with Screen(options.quiet) as screen, lock.hold(output.storage, output.path("_job", "lock"), uuid4().hex):
        begin(running, trials, output, screen.note)
        left = [trial for trial in trials if read_case(trial) is None]
        require_data(left, _DONE)
        require_truth(left)
        require_weights(left, _DONE)
        output.storage.put(output.path("_job", "job.yaml"), to_yaml(job).encode())
        finished = f", {len(trials) - len(left):,} of them finished before" if len(left) < len(trials) else ""
        screen.note(f"{len(trials):,} cases{finished}")
        for number, trial in enumerate(left, len(trials) - len(left) + 1):
            head = f"{number}/{len(trials)} {trial.case or trial.name}"
            done.append(_predict(trial, under(screen, head)))
            found = _write(compared(job, trials), output)
            screen.note(f"{number}/{len(trials)} {case_line(found, trial)}")
        found = _write(compared(job, trials), output)
    for line in lines(found):
        screen.say(line)
    screen.say(f"  cases:  {redact(output.path('study.parquet'))}")
    screen.say(f"  report: {redact(output.path('report.html'))}")
    return _summary(output, trials, done, round(screen.seconds, 3))


def require_truth(trials: Sequence[StudyCase]) -> None:
    """Insist on what judges each case before the first is predicted; a UserError has all that lack."""
    lacking: dict[str, str] = {}
    for trial in trials:
        try:
            _require_truth(trial)
        except UserError as error:
            lacking.setdefault(str(error), trial.case or trial.name)
    if lacking:
        words = [f"{case}: {error}" for error, case in lacking.items()]
        raise UserError("\n".join(["nothing was predicted: a study compares by ground truth", *words]))


def _require_truth(trial: StudyCase) -> None:
    job = trial.job
    if named_list(job) is None and open_source(job.input, Storage(job.input.storage)).truth_schema is None:
        raise UserError(
            f"there is none for the images of {job.input.url}\n"
            "  what to do: say where it lies in input.truth, or of faces in evaluate.truth"
        )


def _predict(trial: StudyCase, progress: Callable[[str], object]) -> Summary:
    """Predict and judge one case, or go on where it was interrupted; ``progress`` gets its live line.

    Raises UserError where its ground truth judges nothing, and as `run` does.
    """
    try:
        summary = run(trial.job, RunOptions(quiet=True, progress=progress))
    except UserError as error:
        raise UserError(f"{trial.case or trial.name}: {error}") from None
    if read_case(trial) is None:
        raise UserError(
            f"{trial.case or trial.name}: its ground truth judges nothing of what was predicted\n"
            "  what to do: give ground truth of the same kind of answer"
        )
    return summary


def _write(found: Comparison, output: Output) -> Comparison:
    """Write what the finished cases say so far, as a table, as numbers and as a page."""
    put_table(output, found.cases)
    output.storage.put(output.path("study.json"), json.dumps(found.to_json(), indent=1).encode())
    write_page(output, found)
    return found


def _summary(output: Output, trials: Sequence[StudyCase], done: Sequence[Summary], seconds: float) -> Summary:
    """Return what the study did: ``images`` and ``total`` count cases, ``failed`` images of those run now."""
    failed: Counter[str] = sum((Counter(one.failed) for one in done), Counter())
    return Summary(
        output.uri,
        images=len(done),
        total=len(trials),
        failed=dict(failed),
        seconds=seconds,
        exit_status=max((one.exit_status for one in done), default=0),
        paths=places(output, {"trials": "study.parquet", "study": "study.json", "report": "report.html"}),
    )
