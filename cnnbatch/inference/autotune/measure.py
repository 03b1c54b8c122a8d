"""Measures, on a sample of the job, which way through its network is fastest among those that agree.

The first worker of a kind of device does it before its first shard. On a CPU of which a worker has one
thread, the processor's time counts, so that workers that are loading meanwhile don't disturb it. A pass
over the sample gives the rate and what the guard compares. The price: the sample is read again for each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from statistics import median
from typing import Any, Literal

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.inference.autotune.agreement import agreement, beyond, kept
from cnnbatch.inference.autotune.candidates import (
    PRIOR_FEW,
    PRIOR_SAMPLE,
    PROMISE,
    Budget,
    Pace,
    TuningCandidate,
    TuningTrial,
    Verdict,
    batches,
    best,
    candidates,
    cost_s,
    decided_already,
    prior,
)
from cnnbatch.inference.autotune.store import FEW
from cnnbatch.inference.autotune.trials import by, is_of, trial_of
from cnnbatch.inference.messages import TuningSample
from cnnbatch.inference.worker.devices import find_device, has_bf16
from cnnbatch.inference.worker.settings import Settings
from cnnbatch.inference.worker.worker import PredictFault, Worker
from cnnbatch.job import MapJob
from cnnbatch.models.runtime.backends import Unavailable
from cnnbatch.output.plan import spread
from cnnbatch.types import Model, Shard

HEAD_BATCHES = 2
"""Batches after which a way that is clearly slower is given up."""
CLEARLY = 0.9
WORTH_A_BATCH = 1.05
"""How much faster another batch size has to be: it is timed on few batches."""

Make = Callable[[Settings, Model | None], Worker]
"""Makes a worker with these settings, around a model that is loaded already or None."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass over images gave: outputs by position, one an input, and seconds an image."""

    outputs: Mapping[int, Sequence[Mapping[str, Any]]]
    forward_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class Measured:
    """The worker to go on with, and what came of every candidate.

    ``found`` is None where nothing could be timed; for ``enough`` images a worker more would have been tried.
    """

    worker: Worker
    trials: Sequence[TuningTrial]
    found: Literal["measured", "prior"] | None
    enough: int | None = None


def measure(job: MapJob, first: Worker, sample: TuningSample, make: Make) -> Measured:
    """Measure, or take the prior where that would not pay.

    ``first`` runs as the job says, where it says it, else in eager fp32. Workers that are not returned
    are closed. Raises as `Worker.run`, for the sample's own images.
    """
    return _Measuring(job, first, sample, make).result()


def open_ways(job: MapJob, plain: Settings, precision_open: bool) -> list[TuningCandidate]:
    """Return the ways that the job and the output leave open, where ``plain`` is how a worker runs first."""
    return candidates(
        plain.type,
        has_bf16(find_device(plain.type)),
        job.task.precisions if precision_open else {plain.precision},
        job.task.backends if job.compute.backend == "auto" else {plain.backend},
    )


class _Measuring:
    """One measuring: the reference, the budget that follows from it, and the trials so far."""

    def __init__(self, job: MapJob, first: Worker, sample: TuningSample, make: Make) -> None:
        self._job, self._sample, self._make = job, sample, make
        self._first = self._chosen = first
        self._trials: list[TuningTrial] = []
        self._passed: list[TuningTrial] = []
        self._found: Literal["measured", "prior"] | None = None

    def result(self) -> Measured:
        reason = self._measure_reference()
        if not reason:
            for candidate in self._candidates():
                self._try(candidate)
            self._try_batches()
            self._try_decoder()
        if self._chosen is not self._first:
            self._first.close()
        self._chosen.settings.apply()
        enough = self._budget.enough if self._found else None
        return Measured(self._chosen, self._explained(reason), self._found, enough)

    def _measure_reference(self) -> str:
        """Take the pass of eager fp32; say why nothing is measured, where that is so."""
        if not self._candidates():
            return "there is no other way on this device"
        settings = replace(self._first.settings, precision="fp32", backend="eager", tf32=False)
        worker = self._first if settings == self._first.settings else self._make(settings, None)
        refs, head = self._sample.shard.refs, self._head(worker)
        each = head.forward_s + head.decode_s
        if math.isinf(each):
            return "none of the first images of the sample could be predicted"
        self._budget = Budget(self._sample.images, self._sample.workers, each)
        trials_s = [cost_s(candidate, each, len(refs)) for candidate in self._candidates()]
        reason = self._budget.reason_against(len(refs) * each + min(trials_s, default=math.inf))
        if reason:
            self._found = "prior"
            self._take_prior(worker, head, reason)
        else:
            reason = self._take_reference(worker)
        if worker is not self._first:
            worker.close()
        return reason

    def _take_reference(self, worker: Worker) -> str:
        started = time.monotonic()
        self._reference = self._pass(worker, self._sample.shard)
        self._budget.spent_s += time.monotonic() - started
        if len(self._reference.outputs) < FEW:
            return f"only {len(self._reference.outputs)} images of the sample could be predicted"
        self._found = "measured"
        self._note_reference(worker)
        return ""

    def _note_reference(self, worker: Worker) -> None:
        # What is not first is a way that the job does not allow itself.
        verdict: Verdict = "slower" if worker is self._first else "reference"
        trial = trial_of(worker.settings, verdict, rate=1 / self._reference.forward_s)
        self._trials.append(trial)
        if worker is self._first:
            self._passed.append(trial)

    def _take_prior(self, worker: Worker, head: Pass, reason: str) -> None:
        """Try the prior's way on a few images, if that takes less than it saves; the others are not tried."""
        ways = self._candidates()
        way = prior(ways, self._first.settings.backend)
        if way is None or not self._prior_pays(way, head):
            return
        is_enough = self._is_prior_sample(worker)
        self._reference = head if is_enough else self._pass(worker, self._shard(PRIOR_SAMPLE))
        if len(self._reference.outputs) < PRIOR_FEW:
            self._found = None  # Which says nothing of other images.
            return
        self._note_reference(worker)
        self._note(self._loaded(by(way, self._first.settings), self._glanced_at))
        others = [one for one in ways if one != way]
        self._trials += [trial_of(by(one, self._first.settings), "not tried", reason) for one in others]

    def _prior_pays(self, way: TuningCandidate, head: Pass) -> bool:
        each = head.forward_s + head.decode_s
        again_s = 0.0 if self._is_prior_sample(self._first) else PRIOR_SAMPLE * each
        saved_each_s = head.forward_s * (1 - 1 / PROMISE[way.precision])
        return self._budget.pays(again_s + cost_s(way, each, PRIOR_SAMPLE), saved_each_s)

    def _is_prior_sample(self, worker: Worker) -> bool:
        """Say whether the batches by which a worker is timed are enough images for the prior."""
        return HEAD_BATCHES * worker.settings.batch >= PRIOR_SAMPLE

    def _candidates(self) -> list[TuningCandidate]:
        """Return the ways that are open, but for the reference itself."""
        found = open_ways(self._job, self._first.settings, self._sample.precision_open)
        return [one for one in found if one != TuningCandidate("fp32", "eager")]

    def _try(self, candidate: TuningCandidate) -> None:
        started = time.monotonic()
        self._note(self._tried(candidate, by(candidate, self._first.settings)))
        self._budget.spent_s += time.monotonic() - started

    def _note(self, trial: TuningTrial) -> None:
        self._trials.append(trial)
        if trial.verdict == "slower":
            self._passed.append(trial)

    def _tried(self, candidate: TuningCandidate, settings: Settings) -> TuningTrial:
        each = self._reference.forward_s + self._reference.decode_s
        reason = decided_already(candidate, self._passed, 1 / self._reference.forward_s)
        if not reason:
            reason = self._budget.reason_against(cost_s(candidate, each, len(self._sample.shard.refs)))
        return trial_of(settings, "not tried", reason) if reason else self._loaded(settings, self._measured)

    def _loaded(self, settings: Settings, judge: Callable[[Worker], TuningTrial]) -> TuningTrial:
        """Load a way, have it judged, and go on with it if it is the best so far."""
        started = time.monotonic()
        try:
            worker = self._worker(settings)
        except (Unavailable, UserError, RuntimeError) as error:  # Eager fp32 has loaded: only this way can't.
            return trial_of(settings, "not available", str(error))
        loading_s = time.monotonic() - started
        try:
            trial = judge(worker)
        except PredictFault as fault:
            trial = trial_of(settings, "not available", fault.message)
        trial = replace(trial, loading_s=loading_s)
        self._keep(worker, trial)
        return trial

    def _worker(self, settings: Settings) -> Worker:
        return self._first if settings == self._first.settings else self._make(settings, None)

    def _measured(self, worker: Worker) -> TuningTrial:
        """Time a worker, first on few images, and compare what it says with the reference."""
        rate = 1 / self._head(worker).forward_s
        fastest = max((one.rate or 0.0 for one in self._passed), default=0.0)
        if rate < CLEARLY * fastest:
            return trial_of(worker.settings, "slower", rate=rate)
        found = self._pass(worker, self._sample.shard)
        measured, reason = self._guard(worker, found)
        verdict: Verdict = "other results" if reason else "slower"
        return trial_of(worker.settings, verdict, reason, 1 / found.forward_s, measured)

    def _glanced_at(self, worker: Worker) -> TuningTrial:
        """Time a worker on few images, and compare what it says of them with the reference."""
        found = self._head(worker, PRIOR_SAMPLE)
        measured, reason = self._guard(worker, found)
        verdict: Verdict = "other results" if reason else "slower"
        return trial_of(worker.settings, verdict, reason, 1 / found.forward_s, measured)

    def _guard(self, worker: Worker, found: Pass) -> tuple[dict[str, float], str]:
        """Return how a pass agrees with the reference's, and what of it is beyond the limits."""
        if str(worker.identity["weights"]).startswith("random"):
            return {}, ""
        both = sorted(self._reference.outputs.keys() & found.outputs.keys())
        before, after = (
            [one for place in both for one in side.outputs[place]] for side in (self._reference, found)
        )
        measured = agreement(before, after, getattr(self._job.task, "threshold", None))
        return measured, beyond(measured) if measured else "nothing that can be compared"

    def _keep(self, worker: Worker, trial: TuningTrial) -> None:
        """Go on with the worker if it is the best so far; close the one that is not gone on with."""
        passed = [*self._passed, trial] if trial.verdict == "slower" else self._passed
        loser = worker
        if passed and best(passed) is trial:
            loser, self._chosen = self._chosen, worker
        if loser is not self._chosen and loser is not self._first:
            loser.close()

    def _try_batches(self) -> None:
        """Try other batch sizes for the way that was chosen, which needs no loading."""
        settings = self._chosen.settings
        if self._job.compute.batch != "auto" or settings.backend == "compile" or not self._passed:
            return
        fastest = best(self._passed).rate or 0.0
        for batch in batches(settings.type, settings.batch):
            other = settings.with_batch(batch)
            reason = self._budget.reason_against(2 * HEAD_BATCHES * batch / fastest)
            if reason:
                self._trials.append(trial_of(other, "not tried", reason))
                continue
            started = time.monotonic()
            worker = self._make(other, self._chosen.model)
            rate = 1 / self._head(worker).forward_s
            self._trials.append(trial_of(other, rate=rate))
            self._budget.spent_s += time.monotonic() - started
            if rate > WORTH_A_BATCH * fastest:
                fastest, worker, self._chosen = rate, self._chosen, worker
            worker.close()

    def _decoder_is_open(self) -> bool:
        on_cuda = self._first.settings.type == "cuda"
        return on_cuda and self._sample.decoder_open and self._job.task.prepares_on_device

    def _try_decoder(self) -> None:
        """Try decoding on the device, too, for the way that was chosen, which needs no loading."""
        host = self._chosen
        if not self._decoder_is_open() or not self._passed:
            return
        other, forward_s = replace(host.settings, decoder="cuda"), 1 / self._rate(host)
        pace = Pace(self._reference.decode_s / host.settings.threads, forward_s)
        passes_s = 3 * len(self._sample.shard.refs) * (pace.ahead_s + forward_s)
        reason = pace.reason_against_device() or self._budget.reason_against(passes_s)
        if reason:
            self._trials.append(trial_of(other, "not tried", reason))
            return
        try:
            worker = self._make(other, host.model)
        except EnvironmentFault as fault:
            self._trials.append(trial_of(other, "not available", str(fault)))
            return
        try:
            trial = self._decoded(worker, Pace(host.ahead_s(self._sample.shard), forward_s))
        except PredictFault as fault:
            trial = trial_of(other, "not available", fault.message)
        self._trials.append(trial)
        if trial.verdict == "chosen":
            worker, self._chosen = host, worker
        worker.close()

    def _decoded(self, worker: Worker, host: Pace) -> TuningTrial:
        """Measure a worker that decodes on the device, against the same that does not."""
        self._head(worker)
        found = self._pass(worker, self._sample.shard)
        measured, beyond = self._guard(worker, found)
        device = Pace(worker.ahead_s(self._sample.shard), found.forward_s)
        reason = beyond or host.reason_for_device(device)
        verdict: Verdict = "other results" if beyond else "chosen" if reason else "slower"
        return trial_of(worker.settings, verdict, reason, 1 / found.forward_s, measured)

    def _rate(self, worker: Worker) -> float:
        return next(one.rate for one in self._trials if one.rate and is_of(one, worker.settings))

    def _head(self, worker: Worker, least: int = 0) -> Pass:
        """Time a few batches, of ``least`` images together, after one that warms up."""
        batch = worker.settings.batch
        self._pass(worker, self._shard(batch))
        return self._pass(worker, self._shard(max(HEAD_BATCHES * batch, least)))

    def _shard(self, count: int) -> Shard:
        """Return so many images from all over the sample, again from its start where it has fewer."""
        refs = self._sample.shard.refs
        return Shard(self._sample.shard.index, tuple(islice(cycle(spread(refs, count)), count)))

    def _pass(self, worker: Worker, shard: Shard) -> Pass:
        worker.settings.apply()
        outputs, forward_s, decode_s = {}, list[float](), 0.0
        for one in worker.outputs(shard, _clock(worker.settings)):
            outputs[one.position] = [kept(output) for output in one.outputs]
            forward_s.append(one.forward_s)
            decode_s += one.decode_s
        if not outputs:  # None of these images can be read: there is no rate.
            return Pass(outputs, math.inf, 0.0)
        # The median of the windows: what else the process does in one of them says nothing of the network.
        return Pass(outputs, max(median(forward_s), 1e-9), decode_s / len(outputs))

    def _explained(self, reason: str) -> list[TuningTrial]:
        """Return the trials with the chosen one marked, and why it was chosen."""
        if not self._trials:
            return [trial_of(self._first.settings, "chosen", reason)]
        chosen = self._chosen.settings
        if not any(is_of(trial, chosen) for trial in self._trials):
            self._trials.append(trial_of(chosen))  # As the job names it, of which no trial was made.
        return [
            replace(trial, verdict="chosen", reason=self._why_by_prior(reason) or trial.reason or self._why())
            if is_of(trial, chosen)
            else trial
            for trial in self._trials
        ]

    def _why_by_prior(self, reason: str) -> str:
        return f"chosen by prior, since measuring {reason}" if reason else ""

    def _why(self) -> str:
        if str(self._chosen.identity["weights"]).startswith("random"):
            return "the fastest; random weights say nothing that could be compared"
        return "the fastest of those that give the same results"


def _clock(settings: Settings) -> Callable[[], float]:
    """Return the processor's time where it is the forward pass's, else the wall's."""
    return time.process_time if settings.type == "cpu" and settings.threads == 1 else time.perf_counter
