"""Finds objects and the points of each, as the 17 of a body: Mask R-CNN's pose network (He et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import pyarrow as pa
from pydantic import Field, model_validator

from cnnbatch.errors import UserError
from cnnbatch.models.trained_files import may_be_folder, read_model
from cnnbatch.storage import Storage
from cnnbatch.tasks.detect import Detect
from cnnbatch.truth import keypoints_field
from cnnbatch.types import Head

if TYPE_CHECKING:
    from cnnbatch.config.train import Train
    from cnnbatch.tasks.recipes.recipe import Recipe, TrainingData
    from cnnbatch.tasks.recipes.targets import Details

Sigma = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
Sigmas = Annotated[tuple[Sigma, ...], Field(strict=False, min_length=1, max_length=1000)]
Point = Annotated[int, Field(ge=0)]
Pairs = Annotated[tuple[Annotated[tuple[Point, Point], Field(strict=False)], ...], Field(strict=False)]


class Keypoints(Detect):
    """Poses; every object has ``keypoints`` (x, y, visibility) beside its box, in the order of the truth."""

    heads: ClassVar[tuple[Head, ...]] = ("keypoints",)
    trained_to: ClassVar[str] = "keypoints"
    adapters: ClassVar[tuple[str, ...]] = ()

    name: str = "keypoints"
    model: str = "keypointrcnn_resnet50_fpn"
    """A pose network of torchvision, ``keypointrcnn_BACKBONE_fpn`` with a classifier of torchvision, or
    ``mypackage.module:build``."""
    adapter: None = None
    sigmas: Sigmas | None = None
    """One number a point, by how much it may be off: COCO's kappa is twice that. Without them those of the
    trained folder, or COCO's 17 of a person."""
    swapped: Pairs | None = None
    """Pairs of points, counted from 0, that change places where a picture is mirrored for a training."""

    @model_validator(mode="after")
    def _swaps_points_that_there_are(self) -> Self:
        places = [place for pair in self.swapped or () for place in pair]
        if len(set(places)) < len(places):
            raise ValueError(f"swapped: expected each point once at most, got {_pairs(self.swapped)}")
        if self.sigmas and max(places, default=0) >= len(self.sigmas):
            raise ValueError(
                f"swapped: expected points below {len(self.sigmas)}, of which there are sigmas; "
                f"got {_pairs(self.swapped)}"
            )
        return self

    def columns(self) -> pa.Schema:
        """Return ``objects``: as `Detect` has them, with ``keypoints``, which know the sigmas."""
        sigmas = self.sigmas or tuple(self._trained().get("sigmas", ()))
        objects: Any = super().columns().field("objects").type
        fields = [keypoints_field(sigmas) if one.name == "keypoints" else one for one in objects.value_type]
        return pa.schema([pa.field("objects", pa.list_(pa.struct(fields)))])

    def count_points(self) -> int | None:
        """Return how many points an object has; None where the weights say it."""
        return len(self.sigmas) if self.sigmas else None

    def details(self) -> Details:
        """Return what a training learns of objects: their points, COCO's where none are said."""
        from cnnbatch.metrics.iou_types import SIGMAS, SWAPPED
        from cnnbatch.tasks.recipes.targets import Details

        before = self._trained()
        sigmas = self.sigmas or tuple(before.get("sigmas", ()))
        swapped = self.swapped if self.swapped is not None else before.get("swapped")
        if not sigmas:
            sigmas, swapped = tuple(SIGMAS.tolist()), SWAPPED if swapped is None else swapped
        return Details(self.heads, sigmas, tuple((left, right) for left, right in swapped or ()))

    def recipe(self, spec: Train, data: TrainingData) -> Recipe:
        """Return how a pose network of torchvision learns the points of ``data``; UserError for another."""
        known = self.sigmas is None or self.swapped is not None
        if spec.augment.flip and not known:
            raise UserError(
                "task.swapped: which points change places where a picture is mirrored, is not known\n"
                "  what to do: give the pairs beside task.sigmas, as task.swapped=[[0,1]], task.swapped=[] "
                "where there are none, or train.augment.flip=false"
            )
        return super().recipe(spec, data)

    def _trained(self) -> Mapping[str, Any]:
        """Return what the trained folder says, that is the model or its weights; nothing where it is none."""
        for place in (self.model, *([self.weights] if may_be_folder(self.weights) else [])):
            if about := read_model(place, Storage(self.storage)):
                found: Mapping[str, Any] = about["architecture"]
                return found
        return {}


def _pairs(pairs: Pairs | None) -> str:
    return str([[*pair] for pair in pairs or ()])
