"""The main path of a study of trainings: one by one, or side by side, then what they say together.

Every trial is an ordinary training with an output of its own. Once it is over its record is kept, so that an
interrupted study goes on with the trials that have none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from uuid import uuid4

from cnnbatch.config.input import Input
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.humanize import duration
from cnnbatch.inference import fingerprint
from cnnbatch.inference.run import RunOptions, Summary, places
from cnnbatch.job import StudyCase, StudyJob, StudyTrial, TrainJob, in_force, to_yaml, trials_of
from cnnbatch.output import lock, ownership
from cnnbatch.output.folder import Output, require_same
from cnnbatch.report.numbers import share
from cnnbatch.sources import datasets, open_source
from cnnbatch.storage import Storage, normalize, redact
from cnnbatch.terminal.screen import Screen
from cnnbatch.training.run import ANOTHER, require_same_training
from cnnbatch.training.study import words
from cnnbatch.training.study.findings import Findings, find
from cnnbatch.training.study.page import write_study_report
from cnnbatch.training.study.record import TrialRecord, put_table, read_record
from cnnbatch.training.study.trial import finish, output_of

AnyTrial = StudyTrial | StudyCase


def study(job: StudyJob, options: RunOptions | None = None) -> Summary:
    """Train all trials of a study, or those that are left, and compare them.

    Raises UserError, EnvironmentFault or OutputHeld; finished trials stay, and the same call continues.
    """
    options = options or RunOptions()
    output = Output(normalize(job.output.url), Storage(job.output.storage))
    running = _Running(job, in_force(job, job.lesson), output)
    trials = trials_of(running.job)
    with Screen(options.quiet) as screen, lock.hold(output.storage, output.path("_job", "lock"), uuid4().hex):
        begin(running.job, trials, output, screen.note)
        known = _known(trials, output)
        left = [trial for trial in trials if trial.name not in known]
        require_data(left)
        require_weights(left)
        output.storage.put(output.path("_job", "job.yaml"), to_yaml(job).encode())
        screen.note(_begins(trials, known))
        trained = 0
        for record in _trained(running, left, len(trials), screen):
            known[record.name] = record
            trained += 1
            screen.note(_line(record, len(known), len(trials), running.job.study.metric))
            running.write([known[trial.name] for trial in trials if trial.name in known])
        failed = [record.error for record in known.values() if record.error is not None]
        if len(failed) == len(trials):
            raise UserError(f"no trial could be trained: {failed[0]}")
        found = running.write([known[trial.name] for trial in trials])
    for line in words.lines(found):
        screen.say(line)
    screen.say(f"  trials: {redact(output.path('study.parquet'))}")
    screen.say(f"  report: {redact(output.path('report.html'))}")
    return Summary(
        output.uri,
        images=trained,
        total=len(trials),
        failed={"training": len(failed)} if failed else {},
        seconds=round(screen.seconds, 3),
        exit_status=0,
        paths=places(output, {"trials": "study.parquet", "study": "study.json", "report": "report.html"}),
    )


@dataclass(frozen=True)
class _Running:
    """What one call works with: the job as it was given, and as it is in force."""

    given: StudyJob
    job: StudyJob
    output: Output

    def write(self, records: Sequence[TrialRecord]) -> Findings:
        """Write what is known so far, as a table, as numbers and as a page."""
        found = find(self.given, self.job, records, self.output)
        put_table(self.output, records)
        self.output.storage.put(
            self.output.path("study.json"), json.dumps(found.to_json(), indent=1).encode()
        )
        write_study_report(self.output, found)
        return found


def require_data(trials: Sequence[AnyTrial], done: str = "trained") -> None:
    """Insist on the images of all trials before anything is ``done``; a UserError has all that lack."""
    lacking: dict[str, str] = {}
    for trial in trials:
        chosen = trial.job.input.model_copy(update={"subset": None, "classes": None})
        if (key := repr(chosen)) not in lacking:
            try:
                _require_images(chosen)
            except UserError as error:
                lacking[key] = f"{trial.case}: {error}" if trial.case else str(error)
    if lacking:
        raise UserError("\n".join([f"nothing was {done}: the study lacks images", *lacking.values()]))


def begin(job: StudyJob, trials: Sequence[AnyTrial], output: Output, note: Callable[[str], None]) -> None:
    """Record that ``output`` is begun for ``job``; what another one left there without a result is discarded.

    Where a trial has a result, the study may only have other trials than it had: raises UserError where one
    of them, or what they have in common, was another.
    """
    ownership.make_room(output, "study", note)
    fields = fingerprint.of_study(job)
    known = (output.decided("study") or {}).get("fields")  # Earlier records have none.
    known = fingerprint.completed(known) if job.train else known
    if ownership.holds_results(output):
        for trial in trials:
            if ownership.holds_results(output_of(trial)):
                _require_same(trial)
        head = f"{redact(output.uri)} holds another study:"
        require_same(head, known, fingerprint.of_training(job), ANOTHER)
    elif known is not None and known != fields and ownership.discard_all(output):
        note(ownership.discarded(output, known, fields))
    record = {"metric": job.study.metric, "fields": fields}
    output.storage.put(output.path("_job", "study.json"), json.dumps(record, indent=1).encode())


def _require_same(trial: AnyTrial) -> None:
    """Refuse a trial other than the one that has a result in its output."""
    if isinstance(trial.job, TrainJob):
        require_same_training(trial.job, output_of(trial))
    else:
        output_of(trial).require_identity(fingerprint.of_job(trial.job))


def _require_images(chosen: Input) -> None:
    storage = Storage(chosen.storage)
    datasets.resolve(chosen, storage)
    if next(iter(open_source(chosen, storage).refs()), None) is None:
        raise UserError(f"input: there is no image in {chosen.url}\n  what to do: look at the address")


def require_weights(trials: Sequence[AnyTrial], done: str = "trained") -> None:
    """Insist on the networks of all trials before anything is ``done``; training from scratch needs none.

    Raises UserError and EnvironmentFault.
    """
    needed: dict[str, Callable[[], None]] = {}
    for trial in trials:
        task = trial.job.task
        if not isinstance(trial.job, TrainJob):
            needed[repr(task)] = task.require_weights
        elif trial.job.train.strategy != "scratch":
            needed[repr(task)] = task.require_weights_to_train
    for require in needed.values():
        try:
            require()
        except EnvironmentFault as fault:
            raise EnvironmentFault(f"nothing was {done}: {fault.what}", fault.mend) from fault
        except UserError as error:
            raise UserError(f"nothing was {done}: {error}") from error


def _known(trials: Sequence[StudyTrial], output: Output) -> dict[str, TrialRecord]:
    """Return the records of the trials that are finished, by their names."""
    records = {trial.name: read_record(output, trial.name) for trial in trials}
    return {name: record for name, record in records.items() if record is not None}


def _trained(
    running: _Running, trials: Sequence[StudyTrial], total: int, screen: Screen
) -> Iterator[TrialRecord]:
    """Train the ``trials`` that are left of ``total``, and yield their records.

    One after the other, or side by side on Ray.
    """
    study = running.job.study
    if trials and (study.search or study.side_by_side) and running.job.compute.pool != "inline":
        from cnnbatch.training.study.sweep import side_by_side

        yield from side_by_side(trials, running.output, screen.note)
        return
    for place, trial in enumerate(trials, total - len(trials) + 1):
        head = f"{place}/{total} {trial.name}"
        yield finish(trial, running.output, bool(study.search), under(screen, head))


def under(screen: Screen, head: str) -> Callable[[str], None]:
    """Return what shows the live line of one of several runs, after which one it is."""
    return lambda line: screen.progress(f"{head}: {line}")


def _begins(trials: Sequence[StudyTrial], known: dict[str, TrialRecord]) -> str:
    done = f", {len(known):,} of them finished before" if known else ""
    return f"{len(trials):,} trainings{done}"


def _line(record: TrialRecord, done: int, total: int, metric: str) -> str:
    head = f"{done}/{total} {record.name}"
    if record.error is not None:
        return f"{head}: failed: {record.error}"
    named = metric.replace("_", " ")
    numbers = (record.validation_of(metric), record.test_of(metric))
    parts = [f"{named} {share(numbers[0])}, test {share(numbers[1])}"]
    if record.strategy not in record.settings.values():
        parts.append(f"took {record.strategy}")
    return f"{head}: {', '.join(parts)}, {duration(record.wall_seconds)}"
