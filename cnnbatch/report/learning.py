"""What a training has done: which strategy and why, from how much, and the curves; also while it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cnnbatch.humanize import decimal, number, percent
from cnnbatch.models.trained_files import read_model
from cnnbatch.output import integrity
from cnnbatch.output.folder import Output
from cnnbatch.report.curves import Titled, training_charts
from cnnbatch.report.facts import Fact
from cnnbatch.report.plots import nice_top, shares
from cnnbatch.report.template import Chart, template
from cnnbatch.report.vectors import VectorsByEpoch, vectors_by_epoch
from cnnbatch.storage import NotFound, redact

_HIDDEN = ("images", "validation_seconds")
"""Columns of ``metrics.parquet`` whose course tells nothing."""
_NAMED = 8


class Learning(NamedTuple):
    """A training's part of the page; ``why`` is empty where nothing was decided."""

    strategy: str
    why: str
    facts: Sequence[Fact]
    charts: Sequence[Titled]
    pictures: Sequence[str] = ()
    layers: Chart | None = None
    depths: Chart | None = None
    strips: Sequence[Mapping[str, Any]] = ()
    vectors: VectorsByEpoch | None = None


def learning(output: Output, metrics: pa.Table | None) -> Learning | None:
    """Return what an output's ``model.json`` and its ``metrics`` say; None where it holds no training."""
    about = read_model(output.uri, output.storage) or {}
    decided = about or output.decided("training/strategy") or {}
    if metrics is not None:
        metrics = metrics.drop_columns([name for name in _HIDDEN if name in metrics.schema.names])
    if not decided and metrics is None:
        return None
    charts = training_charts(metrics)
    facts = list(_facts(about, output.decided("training/data") or {}, decided.get("figures", {})))
    shown = output.decided("training/inside") or {"pictures": (), "layers": ()}
    layers = _layers(shown["layers"]) if len(shown["layers"]) > 1 else None
    depths = _depths(decided["depths"]) if len(decided.get("depths", ())) > 1 else None
    return Learning(
        strategy=decided.get("strategy", ""),
        why=decided.get("why", ""),
        facts=facts,
        charts=charts,
        pictures=shown["pictures"],
        layers=layers,
        depths=depths,
        strips=shown.get("strips", ()),
        vectors=vectors_by_epoch(shown.get("vectors")),
    )


def _depths(depths: Sequence[Mapping[str, Any]]) -> Chart:
    """Return how often a linear probe on each block's features is right, from the input on."""
    best = max(depths, key=lambda one: one["probe"])
    return Chart(
        plot=shares(
            [one["probe"] for one in depths],
            [f"{one['block']}: {percent(one['probe'])}" for one in depths],
            diagonal=False,
        ),
        up=("0", "100 %"),
        across=(str(depths[0]["block"]), str(depths[-1]["block"])),
        summary=f"Linear probes are best on the features of {best['block']}: {percent(best['probe'])}",
    )


def _layers(layers: Sequence[Mapping[str, Any]]) -> Chart:
    """Return how far each layer moved, from the input on."""
    top = nice_top(max(one["change"] for one in layers))
    titles = [f"{one['layer']}: {percent(one['change'])}" for one in layers]
    still = sum(one["change"] == 0 for one in layers)
    return Chart(
        plot=shares([one["change"] / top for one in layers], titles, diagonal=False),
        up=("0", percent(top)),
        across=("first layer", "last layer"),
        summary=f"From {layers[0]['layer']} to {layers[-1]['layer']}; of {number(len(layers))} layers "
        f"{number(still)} stayed as they were",
    )


def _facts(about: Mapping[str, Any], data: Mapping[str, Any], figures: Mapping[str, float]) -> Sequence[Fact]:
    facts = []
    if data:
        facts += [
            Fact("Classes", number(len(data["classes"]))),
            Fact("Training images", number(data["train"])),
        ]
        facts += [Fact("Validation images", number(data["validation"]), data["how"])]
    if left_out := data.get("left_out"):
        facts.append(Fact("Classes left out", number(len(left_out)), _left_out(left_out)))
    if best := about.get("validation"):
        interval = best.get("interval")
        note = f"95 % interval {percent(interval[0])} to {percent(interval[1])}" if interval else ""
        facts.append(Fact(f"Best {best['of'].replace('_', ' ')}", percent(best[best["of"]]), note))
    if "linear_probe" in figures:
        facts.append(
            Fact("Linear probe", percent(figures["linear_probe"]), f"chance {percent(figures['chance'])}")
        )
        facts.append(Fact("Nearest neighbours", percent(figures["nearest_neighbours"])))
        facts.append(Fact("LogME score", decimal(figures["log_evidence"])))
    if "least_loss" in about:
        facts.append(_least_loss(about["least_loss"]))
    if failed := sum(about.get("failed", {}).values()):
        facts.append(Fact("Not learned from", number(failed), ", ".join(about["failed"])))
    return facts


def _least_loss(least: float | None) -> Fact:
    """Return how low a triplet loss without its maximum can fall."""
    if least is None:
        return Fact("Lower bound of the loss", "none", "it falls as long as the vectors grow")
    return Fact("Lower bound of the loss", decimal(least), "margin - 4, since the vectors have length 1")


def _left_out(classes: Mapping[str, Mapping[str, int]]) -> str:
    """Return the names of classes of which no image trains."""
    names = ", ".join(list(classes)[:_NAMED])
    more = f" and {number(len(classes) - _NAMED)} more" if len(classes) > _NAMED else ""
    return f"no image trains {names}{more}"


def write_training_report(output: Output) -> None:
    """Write ``report.html`` for a training that is still going on."""
    try:
        with output.storage.open(output.path("metrics.parquet")) as file:
            metrics = pq.read_table(file)
        uri = output.path("_job", "training", "job.yaml")
        task = integrity.job(uri, output.storage.read(uri)).get("task", {})
    except NotFound:
        return
    page = template("training.html.j2").render(
        title=Fact(str(task.get("name", "")), str(task.get("model", ""))),
        output=redact(output.uri),
        learning=learning(output, metrics),
    )
    output.storage.put(output.path("report.html"), page.encode())
