"""The training loop: it knows a recipe and a loader, and nothing of what is learned.

Result, on one worker or several: the same steps over the same images, gradients weighted by the images that
each worker really had. Continued from a checkpoint it takes the steps that were left, with the same draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from random import Random
from time import monotonic, perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cnnbatch.config.train import Train
from cnnbatch.tasks.recipes.recipe import Batch, Example, Recipe
from cnnbatch.training.average import MovingAverage
from cnnbatch.training.data.loader import Loader
from cnnbatch.training.distributed import Team
from cnnbatch.training.messages import Position
from cnnbatch.training.optimizers import optimizer
from cnnbatch.training.schedules import factor
from cnnbatch.training.vectors import VectorsByEpoch


class Broken(Exception):
    """A training that can't go on for what it was told: the words are for the person who told it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a training is to do, all settled: ``rate`` the highest learning rate, ``epochs`` how many.

    Of a ``lesson`` it keeps what its page shows by epoch.
    """

    spec: Train
    epochs: int
    rate: float
    device: str
    precision: str = "fp32"
    max_failed: float = 0.01
    lesson: bool = False


@dataclass(slots=True)
class History:
    """What was measured so far: a row a step since the last report, and of each epoch its validation."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    best: float = -math.inf
    best_epoch: int = -1


@dataclass(frozen=True, slots=True)
class _Taken:
    """A step that was taken: its ``numbers`` by ``names``, which a GPU may still be computing."""

    epoch: int
    step: int
    rate: float
    names: Sequence[str]
    numbers: Tensor


class _Clock:
    """Counts the images of an epoch, and the seconds since it began."""

    def __init__(self) -> None:
        self._started, self._images = perf_counter(), 0

    def rate(self, images: int) -> float:
        """Return how many images there were a second, with so many more."""
        self._images += images
        return self._images / max(perf_counter() - self._started, 1e-9)


class Watcher(Protocol):
    """Who is told of a training as it goes; of several workers only the first has one that listens."""

    def step(self, row: Mapping[str, float]) -> None:
        """Take the numbers of a step."""

    def epoch(self, row: Mapping[str, float]) -> None:
        """Take the numbers of an epoch, its steps being over."""

    def save(self, position: Position, state: Callable[[], Mapping[str, Any]], best: bool) -> None:
        """Keep what `state` returns, from which the training goes on at ``position``."""


class Loop:
    """A training on one worker of a team."""

    def __init__(
        self, recipe: Recipe, plan: Plan, training: Loader, validation: Loader, team: Team, watcher: Watcher
    ) -> None:
        self._recipe, self._plan, self._spec = recipe, plan, plan.spec
        self._training, self._validation = training, validation
        self._team, self._watcher = team, watcher
        self._device = torch.device(plan.device)
        module = recipe.module.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._groups = [group for group in recipe.parameters() if group.tensors]
        self._optimizer = optimizer(self._groups, self._spec, plan.rate)
        self._module: nn.Module = team.wrap(module, self._device, narrow=plan.precision == "bf16")
        self._average = self._begun_average()
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=plan.precision == "fp16")
        self._history = History()
        self._vectors = VectorsByEpoch(recipe, plan.lesson)
        self._steps = training.count_steps(self._spec.batch)
        self._saved = monotonic()

    @property
    def history(self) -> History:
        """What was measured."""
        return self._history

    @property
    def vectors(self) -> VectorsByEpoch:
        """What a lesson keeps of its validations."""
        return self._vectors

    def run(self, position: Position, state: Mapping[str, Any] | None) -> History:
        """Train from ``position`` with the ``state`` saved there, to the end; raises Broken."""
        if state is not None:
            self._restore(state)
        else:
            self.fit()
            self._judge_first()
        for epoch in range(position.epoch, self._plan.epochs):
            if self._is_over(epoch):
                break
            first = position.step if epoch == position.epoch else 0
            self._train(epoch, first)
            self._validate(epoch)
        return self._history

    def _judge_first(self) -> None:
        """Validate before the first step, where somebody wants to know."""
        if not (self._spec.judge_first or self._vectors.are_kept):
            return
        values = self._judged()
        measured = self._recipe.measure(values)
        self._vectors.take(0, values, measured)
        if self._spec.judge_first:
            self._watcher.epoch({"epoch": -1, "step": -1, **measured})

    def fit(self) -> None:
        """Have the recipe find in closed form what it does not learn by steps; every worker does it alike.

        Raises Broken where more images can't be read than the job allows.
        """
        if (fit := getattr(self._recipe, "fit", None)) is None:
            return
        with self._autocast():
            fit(self._on_device(examples) for examples in self._training.validating(self._spec.batch))
        self._require_readable()
        self._average = self._begun_average()

    def _begun_average(self) -> MovingAverage | None:
        return MovingAverage(self._recipe.module, self._spec.ema) if self._spec.ema else None

    def _is_over(self, epoch: int) -> bool:
        patience = self._spec.patience
        return (
            patience is not None
            and self._history.best_epoch >= 0
            and epoch - self._history.best_epoch > patience
        )

    def _train(self, epoch: int, first: int) -> None:
        self._module.train()
        self._optimizer.zero_grad(set_to_none=True)
        team = self._team
        examples = self._training.training(epoch, self._spec.batch, team.rank, team.world, first)
        clock, waiting = _Clock(), None
        for step, some in enumerate(examples, first):
            taken = self._step(epoch, step, some)
            if waiting is not None:
                self._tell(waiting, clock)
            waiting = taken
            # Gradients that are still added up would be lost: a checkpoint comes after an update only.
            if step + 1 < self._steps and (step + 1) % self._spec.accumulate == 0 and self._is_due():
                self._tell(waiting, clock)
                waiting = None
                self._watcher.save(Position(epoch, step + 1), self.state, best=False)
        if waiting is not None:
            self._tell(waiting, clock)

    def _tell(self, taken: _Taken, clock: _Clock) -> None:
        """Read a step's numbers, and tell of them; raises Broken where its loss is not a number."""
        numbers = dict(zip(taken.names, taken.numbers.tolist(), strict=True))
        images, norm = int(numbers.pop("images")), numbers.pop("gradient_norm")
        if not math.isfinite(sum(numbers.values())):
            raise Broken(self._undefined(taken.epoch, taken.step, taken.rate, numbers))
        row = {
            "epoch": taken.epoch,
            "step": taken.epoch * self._steps + taken.step,
            "learning_rate": taken.rate,
            "images": images,
            "loss": sum(numbers.values()),
            **(numbers if len(numbers) > 1 else {}),
            **({"gradient_norm": norm} if images else {}),
            "images_per_second": clock.rate(images),
        }
        self._watcher.step(row)

    def _step(self, epoch: int, step: int, examples: Sequence[Example]) -> _Taken:
        """Take a step, and return without waiting for a GPU: its numbers are read when the next is taken."""
        whole = epoch * self._steps + step
        rate = self._set_rate(whole)
        torch.manual_seed(hash((self._spec.seed, epoch, step, self._team.rank)) % 2**63)
        draw = Random(f"{self._spec.seed} {epoch} {step}")
        team = self._team
        counts = torch.zeros(team.world, device=self._device)
        counts[team.rank] = len(examples)
        count = team.sum(counts).sum()
        if not examples and not count:  # Nobody has any; whoever has some need not ask.
            return _Taken(epoch, step, rate, ("images", "gradient_norm"), torch.zeros(2))
        batch = self._batch(examples)
        last = (step + 1) % self._spec.accumulate == 0 or step + 1 == self._steps
        with nullcontext() if last else team.without_sync(self._module):
            with self._autocast():
                batch = self._recipe.on_device(batch, draw)
            share, together = len(examples) / count, partial(team.rows, counts=counts)
            parts = self._gradients(replace(batch, share=share, total=team.sum, together=together))
        losses = team.sum(torch.stack([*parts.values()]))
        norm = self._update() if last else torch.zeros_like(count)
        names = ("images", "gradient_norm", *parts)
        return _Taken(epoch, step, rate, names, torch.cat([torch.stack([count, norm]), losses]))

    def _gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Add this worker's gradients; return its loss by parts, weighted by its share of the images."""
        with self._autocast():
            outputs = self._module(*batch.inputs)
        parts = self._recipe.loss(outputs, batch)
        # The workers' gradients are averaged; the images' are to be.
        scale = batch.share * self._team.world / self._spec.accumulate
        total = torch.stack([*parts.values()]).sum() * scale
        self._scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        return {name: value.detach().float() * batch.share for name, value in parts.items()}

    def _update(self) -> Tensor:
        self._scaler.unscale_(self._optimizer)
        tensors = [tensor for group in self._groups for tensor in group.tensors if tensor.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(tensors, self._spec.clip or math.inf)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update_parameters(self._recipe.module)
        return norm.float()

    def _batch(self, examples: Sequence[Example]) -> Batch:
        """Put examples on the device; a worker without any takes part with a picture of no weight."""
        batch = self._recipe.collate(examples or [self._spare()], training=True)
        return Batch(moved(batch.inputs, self._device), moved(batch.truth, self._device), batch.size)

    def _spare(self) -> Example:
        return next(example for some in self._validation.validating(1) for example in some)

    def _set_rate(self, step: int) -> float:
        spec = self._spec
        rate = self._plan.rate * factor(spec.schedule, step, self._plan.epochs * self._steps, spec.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        return rate

    def _validate(self, epoch: int) -> None:
        started, values = perf_counter(), self._judged()
        self._require_readable()
        history = self._history
        measured = self._recipe.measure(values)
        if not all(map(math.isfinite, measured.values())):
            raise Broken(
                self._undefined(
                    epoch, self._steps - 1, self._set_rate((epoch + 1) * self._steps - 1), measured
                )
            )
        found = measured[self._recipe.metric]
        # Few images validate alike in many epochs, of which the last has learned most.
        as_good = found >= history.best
        if found > history.best:
            history.best, history.best_epoch = found, epoch
        self._vectors.take(epoch + 1, values, measured)
        row = {"epoch": epoch, **measured, "validation_seconds": perf_counter() - started}
        history.epochs.append(row)
        self._watcher.epoch(row)
        self._watcher.save(Position(epoch + 1), self.state, as_good)
        self._saved = monotonic()

    def _judged(self) -> list[Any]:
        """Return the values of all validation images, of all workers."""
        module = self._average.module if self._average is not None else self._recipe.module
        self._team.share_buffers(module)
        module.eval()
        values: list[Any] = []
        size = max(1, self._spec.batch // self._team.world)
        for examples in self._validation.validating(size, self._team.rank, self._team.world):
            if not examples:
                continue
            with torch.inference_mode(), self._autocast():
                batch = self._on_device(examples)
                values += self._recipe.judge(module(*batch.inputs), batch)
        return self._team.gather(values)

    def _on_device(self, examples: Sequence[Example]) -> Batch:
        """Return examples as the network takes them, not changed by chance."""
        batch = self._recipe.collate(examples, training=False)
        batch = Batch(moved(batch.inputs, self._device), moved(batch.truth, self._device), batch.size)
        return self._recipe.on_device(batch, None)

    def _require_readable(self) -> None:
        """Stop where more training images failed than the job allows, whichever workers met them."""
        for loader in (self._training, self._validation):
            loader.failed.by_key.update(self._team.gather([*loader.failed.by_key.items()]))
        count = len(self._training.failed.by_key)
        if count > self._plan.max_failed * len(self._training.refs):
            examples = "\n  ".join(self._training.failed.examples())
            raise Broken(
                f"{count:,} of {len(self._training.refs):,} training images can't be learned from, more "
                f"than max_failed={self._plan.max_failed:g} allows:\n  {examples}\n"
                "  what to do: mend or remove them, or allow more"
            )

    def state(self) -> dict[str, Any]:
        """Return all that the training goes on from, and what it has learned so far."""
        return {
            "learned": self.learned(),
            "module": self._recipe.module.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "history": asdict(self._history),
            "vectors": self._vectors.state(),
        }

    def learned(self) -> dict[str, Tensor]:
        """Return the weights as they are validated: the average, where there is one."""
        module = self._average.module if self._average is not None else self._recipe.module
        return {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}

    def _restore(self, state: Mapping[str, Any]) -> None:
        try:
            self._recipe.module.load_state_dict(state["module"])
            if self._average is not None:
                self._average.load_state_dict(state["average"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._scaler.load_state_dict(state["scaler"])
            self._history = History(**state["history"])
            if "vectors" in state:  # Earlier checkpoints have none.
                self._vectors.restore(state["vectors"])
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise Broken(
                f"the checkpoint is of another network or another way to train: {error}\n"
                "  what to do: choose another output, or delete _job/training/checkpoints in this one"
            ) from error

    def _autocast(self) -> Any:
        if self._plan.precision == "fp32":
            return nullcontext()
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[self._plan.precision]
        return torch.autocast(self._device.type, dtype)

    def _is_due(self) -> bool:
        """Say whether it is time for a checkpoint, which the first worker decides for all."""
        if monotonic() - self._saved < self._spec.checkpoint_s:
            return False
        self._saved = monotonic()
        return True

    def _undefined(self, epoch: int, step: int, rate: float, losses: Mapping[str, float]) -> str:
        found = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        of_step = self._training.steps(epoch, self._spec.batch)[step]
        keys = [ref.key for ref in self._training.refs.shard(of_step).refs]
        return (
            f"the loss is not a number at step {step} of epoch {epoch + 1}: {found}; "
            f"learning rate {rate:.3g}; the step's images: {', '.join(keys)}\n"
            "  what to do: try a lower train.learning_rate, train.clip, or compute.precision=fp32; "
            "the checkpoints before are kept"
        )


def moved(value: Any, device: torch.device) -> Any:
    """Return tensors in lists, tuples, dicts and as they are on ``device``; the rest stays."""
    if isinstance(value, Tensor):
        return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)
    if isinstance(value, Mapping):
        return {name: moved(inner, device) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved(inner, device) for inner in value)
    return value
