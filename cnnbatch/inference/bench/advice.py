"""What would make a job faster, in words: each rule speaks only where the figures say so.

A new rule is one function below `RULES`; it yields a sentence with the figure that it stands on, and
what to change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cnnbatch.humanize import decimal, duration
from cnnbatch.inference.bench.estimate import plan_size
from cnnbatch.output.plan import shard_size

if TYPE_CHECKING:
    from cnnbatch.inference.bench.command import Bench

MUCH = 0.4  # of a core's time for an image: half of it gone is a quarter more images
FREE = 0.9  # of a core, for a process that asks for all of it
NEAR = 0.8  # of the ceiling; runs come to some nine tenths
TOO_LARGE = 4  # times the pixels that the network sees
SEVERAL = 1.5  # inputs an image


def advice(found: Bench) -> list[str]:
    """Return what would help, the likeliest first."""
    return [sentence for rule in RULES for sentence in rule(found)]


def _idle_cores(found: Bench) -> Iterator[str]:
    used, cores, compute = found.machine.cores, found.whole.here.cores, found.job.compute
    if used < cores and not found.machine.devices:
        change = "workers" if compute.workers != "auto" else "cpus_per_worker"
        yield f"{used} of {cores} cores have work: compute.{change}=auto gives it to all"


def _reading(found: Bench) -> Iterator[str]:
    if found.bottleneck != "read":
        return
    machine, compute = found.machine, found.job.compute
    each = duration(found.stages.seconds["read"])
    yield f"reading bounds: {machine.readers} images at a time, {each} each; nearer storage shortens that"
    if machine.devices and compute.gpus_per_worker == "auto":
        yield "compute.gpus_per_worker=0.5 gives two workers a GPU, and twice as many images at a time"
    elif not machine.devices and machine.workers < machine.cores:
        yield "compute.cpus_per_worker=1 gives more workers, each with its own reads"


def _decoding(found: Bench) -> Iterator[str]:
    if not found.machine.devices or found.bottleneck not in ("decode", "prepare"):
        return
    machine, cores = found.machine, found.whole.here.cores
    each = cores // machine.workers
    if each > machine.cores // machine.workers:
        yield (
            f"{found.bottleneck} bounds, on {machine.cores} of {cores} cores: "
            f"compute.cpus_per_worker={each} gives it all of them"
        )
    else:
        yield f"{found.bottleneck} bounds, on all {cores} cores: more of them for each accelerator help"


def _host_threads(found: Bench) -> Iterator[str]:
    if found.machine.devices and found.bottleneck in ("rows", "write"):
        yield (
            f"{found.bottleneck} bounds, one thread a worker: "
            "compute.gpus_per_worker=0.5 gives two workers a GPU"
        )


def _precision(found: Bench) -> Iterator[str]:
    is_able = found.whole.here.has_bf16 and "bf16" in found.job.task.precisions
    if _is_network(found) and is_able and found.job.compute.precision == "fp32":
        yield "this device computes in bfloat16: compute.precision=auto takes it where the results stay"


def _backend(found: Bench) -> Iterator[str]:
    if not _is_network(found):
        return
    compute, settings, able = found.job.compute, found.whole.settings, found.job.task.backends
    others = sorted(able - {settings["backend"]})
    if compute.backend != "auto" and others:
        yield f"compute.backend=auto also tries {' and '.join(others)}, and takes what is fastest here"
    if "openvino" in others and found.whole.device == "cpu" and not found.whole.here.has_openvino:
        yield "pip install 'cnnbatch[openvino]' gives compute.backend=auto one more way to try"


def _inputs(found: Bench) -> Iterator[str]:
    if found.stages.inputs >= SEVERAL and found.bottleneck in ("prepare", "forward"):
        yield (
            f"an image makes {decimal(found.stages.inputs)} inputs of the network: "
            "fewer of them (the task's own fields) cost less in proportion"
        )


def _network(found: Bench) -> Iterator[str]:
    if not _is_network(found):
        return
    task = found.job.task.name
    listed = "" if ":" in task else f" (`cnnbatch models --task {task}` lists them)"
    if found.machine.devices:
        yield f"the network bounds: more accelerators, or a smaller network{listed}"
        return
    rest_s = sum(found.stages.processor.values()) - found.stages.processor["forward"]
    yield (
        f"the network takes {found.share('forward'):.0%} of the processor: a smaller one{listed}, or an "
        f"accelerator; all else is done here for {decimal(found.machine.cores / max(rest_s, 1e-9))} images/s"
    )


def _cores(found: Bench) -> Iterator[str]:
    if found.bound == "the processor" and found.bottleneck != "forward":
        yield (
            f"{found.bottleneck} takes {found.share(found.bottleneck):.0%} of the processor: "
            "more cores, here or on other machines, are faster in proportion"
        )


def _pictures(found: Bench) -> Iterator[str]:
    stages = found.stages
    if not (found.bottleneck == "decode" or (not found.machine.devices and found.share("decode") >= MUCH)):
        return
    if stages.pixels > TOO_LARGE * stages.input_pixels > 0:
        times = decimal(stages.pixels / stages.input_pixels)
        yield f"pictures have {times} times the pixels that the network sees: smaller copies decode faster"


def _parts(found: Bench) -> Iterator[str]:
    job, workers = found.job, found.machine.workers
    parts, _ = plan_size(found.images, shard_size(job.input.shard_size, job.task.shard_size))
    if not found.more and parts < workers:
        yield (
            f"{found.images:,} images in {parts} parts are work for {parts} of {workers} workers: "
            f"input.shard_size={max(1, found.images // (2 * workers))} is for all"
        )


def _start(found: Bench) -> Iterator[str]:
    whole = found.whole
    if found.more or whole.steady is None:
        return
    work_s = found.images / whole.steady
    if whole.start_s <= work_s:
        return
    yield (
        f"start-up dominates: {duration(whole.start_s)} for {duration(work_s)} of work on "
        f"{found.images:,} images; one run of more images shares it"
    )
    if whole.ray_s > work_s:
        yield f"starting Ray alone took {duration(whole.ray_s)}: compute.pool=local goes without"


def _below(found: Bench) -> Iterator[str]:
    if found.stages.given < FREE:
        yield (
            f"this machine is busy with something else: a process got {found.stages.given:.0%} of its core; "
            "measure again when that is over"
        )
    elif found.reached is not None and found.reached < NEAR:
        reached = f"{found.reached:.0%} of its ceiling"
        yield f"the run came to {reached}, where nine tenths are usual: measure longer (--images)"


def _is_network(found: Bench) -> bool:
    return found.bottleneck == "forward"


RULES: tuple[Callable[[Bench], Iterator[str]], ...] = (
    _below,
    _idle_cores,
    _reading,
    _decoding,
    _host_threads,
    _precision,
    _backend,
    _inputs,
    _pictures,
    _network,
    _cores,
    _parts,
    _start,
)
