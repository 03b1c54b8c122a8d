"""Starts what local workers are forked from while the command still imports what a run needs.

Only where a run surely takes such workers: what is started in vain would cost a second of processor.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from cnnbatch.inference.driver.pools import HANDFUL, chosen_pool, runs_inline
from cnnbatch.job import Job, MapJob
from cnnbatch.storage import is_local, normalize


def begin(job: Job) -> None:
    """Start the server of local workers where ``job`` begins a local output and will need some."""
    if not isinstance(job, MapJob) or not _is_new(job.output.url):
        return
    if runs_inline(job.compute, _images(job)) or chosen_pool(job.compute) != "local":
        return
    from cnnbatch.inference.driver import local_workers

    local_workers.begin()


def _is_new(output: str) -> bool:
    """Say whether an output is local and has no plan yet; of another one that takes a request to know."""
    return is_local(output) and not os.path.lexists(os.path.join(normalize(output), "_job", "plan"))


def _images(job: MapJob) -> int:
    """Return a number of images that is certain, at most one more than a handful; 0 where none is."""
    url = job.input.url
    if not isinstance(url, str) or not is_local(url) or job.input.limit is not None or job.input.sample < 1:
        return 0
    return sum(1 for _ in islice(_files(Path(normalize(url))), HANDFUL + 1))


def _files(folder: Path) -> Iterator[Path]:
    """Yield the image files below a folder, as far as their names tell."""
    from cnnbatch.images.formats import SUFFIXES

    for _, _, names in os.walk(folder):
        yield from (folder / name for name in names if os.path.splitext(name)[1].lower() in SUFFIXES)
