"""The ``compute:`` section of a job: on what machines, and how fast."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cnnbatch.config.section import Batch, Count, Seconds, Section

MOST_WORKERS = 10_000


class Workers(Section):
    """Between how many workers a run may vary."""

    min: Count = 1
    max: Count

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"expected max to be at least min, got min {self.min} and max {self.max}")
        if self.max > MOST_WORKERS:
            raise ValueError(f"expected max to be at most {MOST_WORKERS:,}, got {self.max:,}")
        return self


class Compute(Section):
    """Where and how fast; none of it but the precision can change a row."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=MOST_WORKERS)] | Workers = Field(
        "auto", description="auto: one a GPU, or one a core; a number, or {min, max}."
    )
    gpus_per_worker: Literal["auto"] | Annotated[float, Field(ge=0, le=1024, allow_inf_nan=False)] = Field(
        "auto", description="A part of one GPU, or whole GPUs."
    )
    cpus_per_worker: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto", description="CPUs, decode threads and torch threads."
    )
    batch: Literal["auto"] | Batch = Field("auto", description="Images in one forward pass.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: the fastest that gives the same results, by measuring."
    )
    backend: Literal["auto", "eager", "compile", "openvino"] = Field(
        "auto", description="auto: the fastest that is there, by measuring."
    )
    pool: Literal["auto", "ray", "local", "inline"] = Field(
        "auto",
        description="ray: actors; local: processes of this machine; inline: the driver; auto: what is there.",
    )
    start_timeout_s: Seconds = Field(300.0, description="How long to wait for the least number of workers.")
    batch_timeout_s: Seconds = Field(300.0, description="How long one batch may take.")

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        gpus = self.gpus_per_worker
        if isinstance(gpus, float) and gpus > 1 and gpus != int(gpus):
            raise ValueError(
                f"expected gpus_per_worker to be a part of one GPU or a whole number, got {gpus:g}"
            )
        return self
