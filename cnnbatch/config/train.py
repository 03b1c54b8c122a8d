"""The ``train:`` section of a job: how much of the network is tuned, and how."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from cnnbatch.config.section import Batch, Count, Seconds, Section, Share

Strategy = Literal["as_is", "head", "last_blocks", "most_blocks", "all", "scratch"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Factor = Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)]
Scale = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
Scales = Annotated[tuple[Scale, Scale], Field(strict=False)]
Side = Annotated[int, Field(ge=1, le=8192)]
Sides = Annotated[tuple[Side, Side], Field(strict=False)]


class Augment(Section):
    """What is done at random to a training picture, after it is cut to the network's input size.

    Fractions are of the picture's side; every draw follows from the seed, the epoch and the key.
    """

    flip: bool = Field(True, description="Mirror every other picture.")
    shift: Share = Field(0.0, description="Move by up to this part of the side, both ways.")
    crop: Share = Field(0.35, description="The least part of the area that a random crop takes; 1: no crop.")
    colour: Share = Field(0.0, description="Change brightness, contrast and saturation by up to this part.")
    randaugment: Annotated[int, Field(ge=0, le=10)] = Field(
        0, description="How many operations of RandAugment a picture gets."
    )
    magnitude: Annotated[int, Field(ge=0, le=30)] = Field(9, description="RandAugment's strength, of 30.")
    gamma: Factor = Field(
        1.0, description="Raise brightness to a power between 1/gamma and gamma; 1: as it is."
    )
    cast: Share = Field(0.0, description="Change red, green and blue by up to this part, each by another.")
    mixup: NotNegative = Field(0.0, description="MixUp's alpha; 0: none.")
    cutmix: NotNegative = Field(0.0, description="CutMix's alpha; 0: none.")
    crop_size: Sides | None = Field(
        None, description="Of maps: (height, width) of the part that is learned from; null: the model's own."
    )
    scale: Scales = Field(
        (1.0, 1.0), description="Of maps: the least and the greatest factor by which a picture is resized."
    )
    aspect: Share = Field(0.0, description="Of maps: make pictures wider or narrower by up to this part.")

    @field_validator("scale")
    @classmethod
    def _least_comes_first(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] > scale[1]:
            raise ValueError(f"expected the least factor and then the greatest, got {list(scale)}")
        return scale


STRONG = Augment(colour=0.2)
"""For few images that are unlike those that the network was trained on.

No more than this: of blood cells, whose colours and sizes tell what they are, RandAugment's operations cost a
point of accuracy, moving and smaller crops two or three.
"""


class Loss(Section):
    """What networks that give a class to every pixel minimise: a sum of parts, each with its weight.

    Pixels that are to be ignored count in none of them.
    """

    cross_entropy: NotNegative = Field(1.0, description="Weight of the cross-entropy.")
    dice: NotNegative = Field(0.0, description="Weight of the Dice loss over the classes of a step.")
    focal: NotNegative = Field(0.0, description="Weight of the focal loss.")
    lovasz: NotNegative = Field(0.0, description="Weight of the Lovász-softmax loss.")
    balance: Share = Field(
        0.0,
        description="How much more the pixels of rare classes count in cross-entropy and focal loss: by the "
        "inverse of the class's share of all pixels, to this power.",
    )
    focal_gamma: NotNegative = Field(2.0, description="The focal loss's gamma: how little sure pixels count.")
    auxiliary: NotNegative = Field(
        0.5, description="Weight of the same loss of an auxiliary head, where the network has one."
    )

    @model_validator(mode="after")
    def _has_a_part(self) -> Self:
        if not any((self.cross_entropy, self.dice, self.focal, self.lovasz)):
            raise ValueError("expected a weight above 0 for cross_entropy, dice, focal or lovasz")
        return self


EmbeddingKind = Literal[
    "contrastive", "siamese", "triplet", "softmax", "centre", "a_softmax", "cosface", "arcface"
]


class EmbeddingLoss(Section):
    """What networks that give a vector to a picture minimise, so that vectors of one class are alike.

    ``margin`` and ``scale`` are those of the loss's paper where the job does not say.
    """

    kind: EmbeddingKind = Field(
        "triplet", description="The loss: each is one paper's, or the course's Siamese verification."
    )
    pictures: Annotated[int, Field(ge=2, le=1000)] = Field(
        4, description="Pictures of each class in a step, as far as it has so many; pairs need two."
    )
    margin: Positive | None = Field(
        None, description="The margin of contrastive, triplet, a_softmax, cosface and arcface."
    )
    scale: Positive | None = Field(
        None, description="What cosines are multiplied by (cosface, arcface), or embeddings (softmax, ...)."
    )
    mining: Literal["all", "semi_hard", "batch_hard"] = Field(
        "semi_hard", description="Which triplets of a step count."
    )
    hinge: bool = Field(True, description="Of triplets: false leaves out the maximum with 0.")
    weight: NotNegative = Field(3e-4, description="Of the distance to the centres, beside the softmax.")


class Train(Section):
    """How to train; ``auto`` leaves it to what was measured of the data, and says why."""

    strategy: Literal["auto"] | Strategy = Field("auto", description="How much of the network is tuned.")
    features: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="With head: the block whose output it reads, none after it; null: the last."
    )
    epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=100_000)] = Field(
        "auto", description="How often every picture is seen."
    )
    batch: Batch = Field(32, description="Pictures of one step, of all workers together.")
    optimizer: Literal["sgd", "adadelta", "adamw", "muon"] = "adamw"
    learning_rate: Literal["auto"] | Positive = Field(
        "auto", description="The highest, of the head; auto: what suits optimizer and strategy."
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        0.75, description="The learning rate of a stage, as a part of that of the stage after it."
    )
    backbone_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="The learning rate of all before the head, as a part of what it would be otherwise."
    )
    momentum: Share = 0.9
    nesterov: bool = True
    weight_decay: NotNegative = Field(0.02, description="Of weights; biases and normalisations have none.")
    schedule: Literal["one_cycle", "cosine", "poly", "step", "constant"] = "one_cycle"
    warmup: Share = Field(0.2, description="The part of all steps in which the learning rate rises.")
    label_smoothing: Share = 0.1
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: rare classes count more, by the inverse of their pictures."
    )
    loss: Loss = Loss()
    embedding: EmbeddingLoss = EmbeddingLoss()
    proposals: Annotated[int, Field(ge=4, le=10_000)] | None = Field(
        None,
        description="Of R-CNNs: how many proposals of a picture their heads learn from, a quarter of them "
        "objects; null: the model's own number, 512. Fewer cost less.",
    )
    accumulate: Annotated[int, Field(ge=1, le=100_000)] = Field(
        1, description="Steps whose gradients are added up."
    )
    clip: Positive | None = Field(1.0, description="The gradient's greatest norm; null: any.")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Decay of the weights' moving average; at first it is less, (1 + n) / (10 + n) after n "
        "updates. 0: no average.",
    )
    judge_first: bool = Field(
        False, description="Validate before the first step, too: what the network begins with."
    )
    patience: Count | None = Field(None, description="Stop after so many epochs without a better one.")
    augment: Augment = Augment()
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.15, description="Part of the training pictures that validates, where the input sets none apart."
    )
    test: Share = Field(0.15, description="Part that tests, where the input sets none apart; 0: none.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    checkpoint_s: Seconds = Field(300.0, description="Seconds between two checkpoints inside an epoch.")
    max_failures: Annotated[int, Field(ge=0)] = Field(
        10, description="How often lost workers are replaced before the run gives up."
    )

    @model_validator(mode="after")
    def _only_a_head_reads_features(self) -> Self:
        if self.features is not None and self.strategy != "head":
            raise ValueError(f"features is where a head reads; expected strategy head, got {self.strategy}")
        return self
