"""A classifier whose training meets faults, once each: what says that one was met is a file in ``flags``."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from unittest.mock import patch
from uuid import uuid4

import ray
import ray.train.torch

from cnnbatch.tasks.classify import Classify
from cnnbatch.tasks.recipes.classification import ClassifierRecipe

if TYPE_CHECKING:
    from cnnbatch.config.train import Train
    from cnnbatch.tasks.recipes.recipe import Batch, Example, TrainingData


class Faulty(Classify):
    """``kill`` ends the process of a worker in the third epoch, ``slow`` waits in every step."""

    fault: str = ""
    flags: str = ""
    adapters: ClassVar[tuple[str, ...]] = ()

    def recipe(self, spec: Train, data: TrainingData) -> FaultyRecipe:
        """Return a recipe that meets the fault."""
        plain = Classify.model_validate({"name": "classify", "model": self.model})
        recipe = FaultyRecipe(plain.choice({}), spec, data)
        recipe.fault, recipe.flags = self.fault, Path(self.flags)
        (recipe.flags / f"device-{uuid4()}").write_text(_device())
        return recipe


def _device() -> str:
    """Return the GPU on which a worker of Ray Train computes, of those that Ray pretends; "" without any."""
    if not ray.is_initialized():
        return ""
    with patch("torch.cuda.is_available", return_value=True):
        number: int | None = ray.train.torch.get_device().index
    return "" if number is None else os.environ["CUDA_VISIBLE_DEVICES"].split(",")[number]


class FaultyRecipe(ClassifierRecipe):
    """The recipe, which meets a fault in a step."""

    fault = ""
    flags = Path()
    _steps = 0

    def collate(self, examples: Sequence[Example], training: bool) -> Batch:
        """Wait here, or end here, if that is the fault."""
        if training and "slow" in self.fault:
            time.sleep(0.2)
        if training and "kill" in self.fault:
            self._steps += 1
            if self._steps == 8 and not (self.flags / "killed").exists():
                (self.flags / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().collate(examples, training)
