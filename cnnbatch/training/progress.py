"""Shows a training as it goes: a live line, a line an epoch, and the report's curves after each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cnnbatch.errors import UserError
from cnnbatch.humanize import decimal, duration, percent
from cnnbatch.output.folder import Output
from cnnbatch.report.learning import write_training_report
from cnnbatch.terminal.screen import Screen
from cnnbatch.training.data.dataset import Collected
from cnnbatch.training.log import put_metrics
from cnnbatch.training.messages import TrainingMessage


class Progress:
    """Takes what the first worker sends; raises UserError where a training can't go on."""

    def __init__(self, screen: Screen, output: Output, images: int, batch: int) -> None:
        self._screen, self._output = screen, output
        self._steps, self._batch = math.ceil(images / batch), batch
        self._epochs = 0
        self._loss = 0.0
        self._judged = ""

    def begin(self, collected: Collected) -> None:
        """Say what there is to learn from."""
        data = collected.data
        count = len(data.classes)
        classes = f" {count:,} class{'es' if count > 1 else ''}" if count else ""
        self._screen.note(
            f"{data.images:,} images train{classes}, {len(collected.validation):,} validate ({collected.how})"
        )
        if words := collected.left_out_words():
            self._screen.note(words)

    def expect(self, epochs: int) -> None:
        """Take how many epochs there will be."""
        self._epochs = epochs

    def take(self, message: TrainingMessage) -> None:
        """Show what the first worker sent."""
        row = message.row
        if message.kind == "begin":
            for words in row.get("notes", ()):
                self._screen.note(words)
            again = f", going on at epoch {row['epoch'] + 1}" if row["epoch"] or row["step"] else ""
            self._screen.note(f"training on {row['workers']} x {row['device']} in {row['precision']}{again}")
        elif message.kind == "step":
            self._loss = row["loss"]
            self._screen.progress(self._line(row["step"] + 1, row["images_per_second"]))
        elif message.kind == "epoch":
            self._epoch(row)
        elif message.kind == "end" and "broken" in row:
            raise UserError(row["broken"])

    def _line(self, done: int, rate: float) -> str:
        whole = self._epochs * self._steps
        left = (whole - done) * self._batch / max(rate, 1e-9)
        return (
            f"train epoch {(done - 1) // self._steps + 1}/{self._epochs} · loss {self._loss:.3f}"
            f"{self._judged} · {rate:,.1f} images/s · {duration(left)} left"
        )

    def _epoch(self, row: Mapping[str, Any]) -> None:
        numbers = {name: value for name, value in row.items() if name not in ("epoch", "validation_seconds")}
        words = ", ".join(
            f"{name.replace('_', ' ')} {percent(value) if 'accuracy' in name else decimal(value)}"
            for name, value in numbers.items()
        )
        self._judged = f" · {next(iter(numbers))} {percent(next(iter(numbers.values())))}"
        self._screen.note(f"epoch {int(row['epoch']) + 1}/{self._epochs}: loss {self._loss:.3f}, {words}")
        put_metrics(self._output)
        write_training_report(self._output)
