"""One worker's training: from the order to the checkpoints, and at its end to the model's files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import sqrt
from time import monotonic
from typing import Any

import torch
from torch import nn

from cnnbatch.config.train import STRONG, Augment, Train
from cnnbatch.inference import fingerprint
from cnnbatch.inference.worker import devices
from cnnbatch.inference.worker.host_memory import memory_left_bytes
from cnnbatch.inference.worker.readahead import DecodeOptions
from cnnbatch.models.trained_files import put_model
from cnnbatch.output.folder import Output
from cnnbatch.sources import open_source
from cnnbatch.storage import Storage
from cnnbatch.training import lesson
from cnnbatch.training.checkpoints import Checkpoints
from cnnbatch.training.data.dataset import read_refs
from cnnbatch.training.data.loader import Loader
from cnnbatch.training.distributed import Team
from cnnbatch.training.log import drop_events, drop_pieces, put_events, put_piece
from cnnbatch.training.loop import Broken, History, Loop, Plan
from cnnbatch.training.messages import Position, Send, TrainingMessage, TrainingOrder
from cnnbatch.training.optimizers import learning_rate

KEPT_SHARE = 0.25
"""Part of the memory that is free when a training starts, which decoded pictures may take."""
SEND_EVERY_S = 0.5


def work(order: TrainingOrder, team: Team, device: str, threads: int, send: Send) -> None:
    """Train, from the newest checkpoint on; the first worker writes the model at the end."""
    torch.set_num_threads(threads)
    job, spec = order.job, spec_of(order)
    recipe = job.task.recipe(spec, order.data)
    is_as_is = order.decision.strategy == "as_is"
    if is_as_is and not hasattr(recipe, "fit"):
        _put(order, recipe, recipe.module.state_dict(), {})
        return
    loaders = [_loader(order, part, recipe, team, device, threads) for part in ("train", "validation")]
    precision = precision_for(job.compute.precision, device, recipe.module)
    rate = learning_rate(spec)
    plan = Plan(spec, order.epochs, rate, device, precision, job.max_failed, job.lesson)
    watcher = Recorder(order.output, send) if team.rank == 0 else Silent()
    try:
        if is_as_is:
            loop, started = Loop(recipe, plan, loaders[0], loaders[1], team, watcher), monotonic()
            loop.fit()
            if team.rank == 0:
                about = {"fit_seconds": round(monotonic() - started, 3), **_failed(loaders)}
                _put(order, recipe, loop.learned(), about)
                _lesson_ends(order, recipe, loop, loaders, begun=None)
            return
        begun = _lesson_begins(order, recipe) if team.rank == 0 else None
        loop = Loop(recipe, plan, loaders[0], loaders[1], team, watcher)
        saved = Checkpoints(order.output).newest()
        position, state = saved or (Position(), None)
        watcher.begin(
            position,
            {
                "device": device,
                "precision": precision,
                "rate": rate,
                "workers": team.world,
                "notes": getattr(recipe, "notes", ()),
            },
        )
        history = loop.run(position, state)
        if team.rank == 0:
            about = {"precision": precision, "learning_rate": rate, **_failed(loaders)}
            _finish(order, recipe, history, about)
            _lesson_ends(order, recipe, loop, loaders, begun)
            send(TrainingMessage("end", {}))
    except Broken as broken:
        if team.rank == 0:
            send(TrainingMessage("end", {"broken": str(broken)}))
    finally:
        for loader in loaders:
            loader.close()


def spec_of(order: TrainingOrder) -> Train:
    """Return how to train, with what was decided; the job's own augmentation counts more than that."""
    decided = {"strategy": order.decision.strategy, "features": order.decision.features}
    spec = order.job.train.model_copy(update=decided)
    if order.decision.strong and spec.augment == Augment():
        return spec.model_copy(update={"augment": STRONG})
    return spec


def _lesson_begins(order: TrainingOrder, recipe: Any) -> dict[str, torch.Tensor] | None:
    """Return the weights that a lesson begins with; None where it is none."""
    if not order.job.lesson:
        return None
    state: Mapping[str, torch.Tensor] = recipe.learned(recipe.module.state_dict()).state
    return {name: tensor.clone() for name, tensor in state.items()}


def _lesson_ends(
    order: TrainingOrder,
    recipe: Any,
    loop: Loop,
    loaders: Sequence[Loader],
    begun: Mapping[str, torch.Tensor] | None,
) -> None:
    """Keep what the report shows of a lesson's inside.

    ``begun`` are the weights before the first step, None where there was none.
    """
    if not order.job.lesson:
        return
    learned = loop.learned() if begun is None else _best(order)["learned"]
    training, validation = loaders
    step = [] if begun is None else lesson.first_step(training, order.job.train.batch)
    shown = {
        "pictures": lesson.pictures(training),
        "layers": [] if begun is None else lesson.changes(begun, recipe.learned(learned).state),
        "strips": lesson.strips(recipe, learned, validation, step),
        "vectors": loop.vectors.projected(),
    }
    order.output.decide("training/inside", shown)


def precision_for(asked: str, device: str, module: nn.Module) -> str:
    """Return the precision of the forward pass: unless asked, bfloat16 where the device is faster in it."""
    if asked != "auto":
        return asked
    kind: Any = device.partition(":")[0]
    return "bf16" if devices.has_bf16(kind) and not (kind == "cpu" and _is_separable(module)) else "fp32"


def _is_separable(module: nn.Module) -> bool:
    """Say whether a network has depthwise convolutions with batch normalisation.

    On CPUs bfloat16 takes these 1.6 to 2.4 times as long as float32 (MobileNet, EfficientNet, MnasNet and
    ShuffleNet, forward and backward), while others gain; ConvNeXt, which has no batch normalisation, too.
    """
    parts = list(module.modules())
    depthwise = any(isinstance(one, nn.Conv2d) and one.groups == one.in_channels > 1 for one in parts)
    return depthwise and any(isinstance(one, nn.BatchNorm2d) for one in parts)


def _loader(order: TrainingOrder, part: str, recipe: Any, team: Team, device: str, threads: int) -> Loader:
    source = open_source(getattr(order.parts, part), Storage(order.job.input.storage))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", team.world))
    share = KEPT_SHARE * (0.8 if part == "train" else 0.2) / max(1, here)
    decoding = DecodeOptions(threads, max(8, order.job.train.batch // team.world), device != "cpu")
    kept_bytes = int(share * memory_left_bytes())
    return Loader(recipe, source, read_refs(order.output, part), order.job.train.seed, kept_bytes, decoding)


def _failed(loaders: Sequence[Loader]) -> dict[str, Any]:
    """Return how many images could not be learned from, by code, and a few messages."""
    failed = [loader.failed for loader in loaders]
    counts = sum((one.counts() for one in failed), Counter[str]())
    return {"failed": dict(counts), "examples": [line for one in failed for line in one.examples()]}


def _best(order: TrainingOrder) -> dict[str, Any]:
    """Return the checkpoint of the best epoch; raises Broken where somebody has put another file there."""
    best = Checkpoints(order.output).best()
    if best is None or not {"learned", "row"} <= set(best):
        raise Broken(
            "the checkpoint of the best epoch, _job/training/checkpoints/best.pt, is missing or damaged\n"
            "  what to do: delete _job/training/checkpoints, to begin again, or choose another output"
        )
    return best


def _finish(order: TrainingOrder, recipe: Any, history: History, about: Mapping[str, Any]) -> None:
    """Write the model as it was in its best epoch."""
    best = _best(order)
    row = best["row"] | {"of": recipe.metric, "interval": interval(best["row"], recipe.metric, order)}
    _put(order, recipe, best["learned"], {"validation": row, "epochs": history.epochs, **about})


def _put(order: TrainingOrder, recipe: Any, state: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    learned = recipe.learned(state)
    record = {
        "strategy": order.decision.strategy,
        "why": order.decision.why,
        "figures": dict(order.decision.figures),
        "depths": list(order.decision.depths),
        "train": spec_of(order).model_dump(mode="json") | {"epochs": order.epochs},
        "data": {
            "digest": order.digest,
            "train": order.data.images,
            "validation": len(read_refs(order.output, "validation")),
            "how": order.parts.how,
        },
        "versions": fingerprint.versions(),
        **about,
    }
    put_model(order.output.storage, order.output.uri, replace(learned, about={**learned.about, **record}))
    order.output.decide("training/finished", {"strategy": order.decision.strategy})


def interval(row: Mapping[str, float], metric: str, order: TrainingOrder) -> list[float] | None:
    """Return the 95 % Wilson interval of a share of the validation images; None where it is no share."""
    if metric != "accuracy":
        return None
    count, share, z = len(read_refs(order.output, "validation")), row[metric], 1.959964
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return [centre - half, centre + half]


class Silent:
    """Listens to nothing: the watcher of every worker but the first."""

    def begin(self, position: Position, about: Mapping[str, Any]) -> None:
        """Take where the training begins."""

    def step(self, row: Mapping[str, float]) -> None:
        """Take a step."""

    def epoch(self, row: Mapping[str, float]) -> None:
        """Take an epoch."""

    def save(self, position: Position, state: Callable[[], Mapping[str, Any]], best: bool) -> None:
        """Keep nothing."""


class Recorder:
    """Writes a training's numbers and checkpoints, and sends them to the driver.

    A row a step goes to a piece of Parquet at each checkpoint; a piece is named by the step it begins with,
    so one that was written after the newest checkpoint is replaced or removed when the training goes on.
    """

    def __init__(self, output: Output, send: Send) -> None:
        self._output, self._send = output, send
        self._checkpoints = Checkpoints(output)
        self._rows: list[dict[str, float]] = []
        self._begun = Position()
        self._sent_at = 0.0

    def begin(self, position: Position, about: Mapping[str, Any]) -> None:
        """Forget what was recorded after ``position``."""
        self._begun = position
        drop_pieces(self._output, position)
        drop_events(self._output, position)
        self._send(TrainingMessage("begin", {**about, "epoch": position.epoch, "step": position.step}))

    def step(self, row: Mapping[str, float]) -> None:
        """Take a step."""
        self._rows.append(dict(row))
        if monotonic() - self._sent_at >= SEND_EVERY_S:
            self._sent_at = monotonic()
            self._send(TrainingMessage("step", row))

    def epoch(self, row: Mapping[str, float]) -> None:
        """Take an epoch: its numbers stand in the row of its last step, before the first in their own."""
        if self._rows:
            self._rows[-1] |= row
        else:
            self._rows.append(dict(row))
        self._row = dict(row)

    def save(self, position: Position, state: Callable[[], Mapping[str, Any]], best: bool) -> None:
        """Write a checkpoint, and before it the rows that lead to it."""
        if self._rows:
            put_piece(self._output, self._begun, self._rows)
            put_events(self._output, self._begun, self._rows)
        self._rows, self._begun = [], position
        whole = state()
        if best:
            self._checkpoints.put_best({"learned": whole["learned"], "row": self._row})
        self._checkpoints.put(position, {name: value for name, value in whole.items() if name != "learned"})
        if not position.step:
            self._send(TrainingMessage("epoch", self._row))
