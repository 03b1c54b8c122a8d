"""Keeps once, for an output and each kind of device in it, how its workers run; the driver's side.

What is kept lies in ``_job/``: ``settings.json`` has the one precision and the one decoder,
``settings/`` a file for each kind of device, with what was measured for it. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cnnbatch.errors import UserError
from cnnbatch.inference import fingerprint
from cnnbatch.inference.autotune import remembered
from cnnbatch.inference.messages import Ready, RememberedSettings, TuningSample
from cnnbatch.job import MapJob, to_yaml
from cnnbatch.output.folder import Output
from cnnbatch.output.plan import spread
from cnnbatch.storage import redact
from cnnbatch.types import ImageRef, Shard

if TYPE_CHECKING:
    from cnnbatch.evaluation.known_classes import KnownClasses
    from cnnbatch.terminal.screen import Screen

FEW = 100
"""The least number of images on which a way through a network is judged."""
SAMPLE = 104
"""Images of a sample: a few more than that, since some may be broken."""
LARGE_SAMPLE = 400
"""Images of a large job's sample: among a hundred one that is on the brink is one of a hundred too many."""
_SAMPLED = 20  # of so many images that a worker gets, one is in the sample


@dataclass(frozen=True, slots=True)
class FirstImages:
    """The first images to predict, among which a sample is chosen; ``planned`` counts all that are so far."""

    refs: Sequence[ImageRef] = ()
    planned: Callable[[], int] = lambda: 0


class SettingsStore:
    """Keeps how the workers of a run go through the network, and says what is to be measured first.

    With ``allow_mixed`` an output may hold parts of several precisions. ``known`` is asked of the first model
    that was loaded. On ``screen`` it is said what the workers note and what they do.
    """

    def __init__(
        self,
        job: MapJob,
        output: Output,
        first: FirstImages | None = None,
        allow_mixed: bool = False,
        known: KnownClasses | None = None,
        screen: Screen | None = None,
    ) -> None:
        self._job, self._output, self._known = job, output, known
        self._first = first or FirstImages()
        self._allow_mixed, self._screen = allow_mixed, screen
        self._noted: set[str] = set()

    def kept(self) -> dict[str, Any]:
        """Return what is kept: ``precision``, ``decoder``, and the settings by their key."""
        return {**(self._output.decided("settings") or {}), **self._output.settings()}

    def remembered(self) -> tuple[RememberedSettings, ...]:
        """Return what earlier jobs have found for the same task; see `inference.autotune.remembered`."""
        return remembered.recall(self._job, self._note)

    def sample(self, ready: Ready, workers: int) -> TuningSample | None:
        """Return what a worker is to measure on; None where nothing is open or too little is there.

        Nor is it measured again what is remembered, unless this job has many more images.
        """
        self._require_known(ready)
        kept, refs, images = self.kept(), self._first.refs, self._first.planned()
        if not ready.open or images < FEW or len(refs) < FEW or _is_kept(ready, kept):
            return None
        if ready.remembered is not None and ready.remembered.suffices(images, workers):
            return None
        first = "precision" not in kept
        precision_open = self._job.compute.precision == "auto" and first
        share = images // (_SAMPLED * max(1, workers))
        if self._screen is not None:
            self._screen.doing(f"measuring how {model_of(self._job)} runs fastest here")
        chosen = spread(refs, min(max(SAMPLE, share), LARGE_SAMPLE))
        return TuningSample(Shard(0, chosen), images, workers, precision_open, first)

    def keep(self, ready: Ready) -> Mapping[str, Any]:
        """Keep how a worker runs, unless that is kept for its kind of device; return what is kept.

        A worker whose settings are not those has to load again. Raises UserError where the output was
        made by another identity, and where the model does not know the classes of the ground truth.
        """
        self._require_known(ready)
        for words in ready.notes:
            self._note(words)
        if ready.found is not None:
            remembered.remember(self._job, ready.found, self._note)
        settings = ready.settings
        mine = {name: settings[name] for name in ("precision", "decoder")}
        kept = {"decoder": "cpu", **self._output.decide("settings", mine)}
        same_precision = settings["precision"] == kept["precision"] or self._job.compute.precision != "auto"
        if same_precision and settings["decoder"] == kept["decoder"]:
            self._require_identity(ready)
            record = {**settings, "trials": list(ready.trials), "operators_on_cpu": ready.operators_on_cpu}
            decided = self._output.decide(f"settings/{ready.key}", record)
            if ready.remembered is not None and settings.items() <= decided.items():
                self._note(f"{settings['precision']}, {settings['backend']}: {ready.remembered.why()}")
        return self.kept()

    def _note(self, words: str) -> None:
        """Say what a person should know, once."""
        if self._screen is not None and words not in self._noted:
            self._noted.add(words)
            self._screen.note(words)

    def _require_known(self, ready: Ready) -> None:
        if self._known is not None:
            self._known.require(ready.classes)

    def _require_identity(self, ready: Ready) -> None:
        compared = {
            name: value
            for name, value in ready.identity.items()
            if name != "precision" or not self._allow_mixed
        }
        self._output.require_identity(compared)
        self._require_parts_of(ready.identity)
        self._output.decide("identity", ready.identity)
        if ready.classes is not None:
            self._output.decide("classes", ready.classes)
        self._output.storage.put(self._output.path("_job", "job.yaml"), to_yaml(self._job).encode())

    def _require_parts_of(self, made: Mapping[str, Any]) -> None:
        """Refuse finished parts of another identity where the output has lost its record of it."""
        if self._allow_mixed or self._output.decided("identity") is not None:
            return
        for index in sorted(self._output.finished())[:1]:
            if self._output.footer(index).get("fingerprint") != fingerprint.fingerprint(made):
                part = redact(self._output.part(index))
                raise UserError(
                    f"{part} was made by another job, and one output never mixes two\n"
                    "  what to do: choose another output, or give the job that made this one"
                )


def model_of(job: MapJob) -> str:
    """Return the model of a job as a person says it: its name, else that of the task."""
    return str(getattr(job.task, "model", None) or job.task.name)


def _is_kept(ready: Ready, kept: Mapping[str, Any]) -> bool:
    """Say whether a worker's kind of device has its settings in the output's precision."""
    wanted = (ready.settings["device"], kept.get("precision"))
    records = [value for value in kept.values() if isinstance(value, Mapping)]
    return any((record["device"], record["precision"]) == wanted for record in records)
