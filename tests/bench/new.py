"""What `--new` costs before its first shard: a million planned keys, one in a hundred of them new.

The listing is a stub that answers a thousand keys a page at once, so that what is measured is our own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

COUNT = 1_000_000
SHARD = 1000

DRIVER = """
import json, sys, time
import ray  # The real driver has it, so it counts.
from cnnbatch.job import MapJob
from cnnbatch.inference.driver.planner import ListingOptions, Planner
from cnnbatch.output.folder import Output
from cnnbatch.inference.worker.host_memory import peak_rss_bytes
from cnnbatch.inference.run import RunOptions, _Running, _work
from cnnbatch.terminal.screen import Screen
from cnnbatch.sources import open_source
from cnnbatch.storage import Entry, NotFound, Storage


class ListedBucket(Storage):
    def list(self, uri, after=None):
        for number in range(COUNT):
            yield Entry(f"{uri}/{number // 1000:05}/photo-{number:09}.jpg", 100_000, f'"{number:032x}"')
            if NEW and number % 100 == 0:
                yield Entry(f"{uri}/{number // 1000:05}/photo-{number:09}-b.jpg", 100_000, '"new"')

    def head(self, uri):
        raise NotFound(uri)


COUNT, NEW, out = int(sys.argv[1]), sys.argv[2] == "new", sys.argv[3]
started = time.monotonic()
job = MapJob.model_validate({"task": {"name": "tests.toy:Toy"}, "input": "s3://bucket/photos", "output": out})
output = Output(out, Storage())
options = RunOptions(new=NEW, quiet=True)
finished = output.finished()
planner = Planner(output, open_source(job.input, ListedBucket()), job.input, 1000, ListingOptions(NEW))
planner.start()
source = open_source(job.input, ListedBucket())
works = _work(_Running(job, source, output, planner, options, Screen(True)), finished)
first = next((work for work in works if work is not None), None)
seconds, peak = time.monotonic() - started, peak_rss_bytes() / 2**20
rest = sum(work is not None for work in works)
whole = time.monotonic() - started
print(json.dumps({"first": first and first.shard.index, "seconds": seconds, "whole_s": whole, "peak_mb": peak,
                  "whole_peak_mb": peak_rss_bytes() / 2**20, "images": planner.images, "works": rest + 1}))
"""


def drive(count: int, what: str, out: str) -> dict[str, float]:
    """Plan in a process of its own; return what it took."""
    command = [sys.executable, "-c", DRIVER, str(count), what, out]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def finish(out: Path) -> None:
    """Put a part for every planned shard: no rows, and the footer that a run would have left."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cnnbatch.output import plan
    from cnnbatch.output.folder import Output
    from cnnbatch.output.plan_pages import listings_of
    from cnnbatch.storage import Storage

    (listing,) = listings_of(Output(str(out), Storage()))
    (out / "predictions").mkdir()
    for page in range(listing.count_pages()):
        for shard in listing.read(page):
            footer = {"digest": plan.digest(shard), "receipt": {"failed": {}}}
            schema = pa.schema([("key", pa.string())], {b"cnnbatch": json.dumps(footer).encode()})
            path = out / "predictions" / f"part-{shard.index:08}.parquet"
            pq.write_table(schema.empty_table(), path)


def main(count: int = COUNT) -> None:
    """Print what the first listing and the nightly one cost."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        first = drive(count, "first", str(out))
        finish(out)
        again = drive(count, "new", str(out))
        nothing = drive(count, "first", str(out))
    console.print(
        f"first listing of {count:,} keys: {first['whole_s']:.1f} s, {first['whole_peak_mb']:.0f} MB"
    )
    console.print(
        f"--new, {again['images'] - count:,.0f} of {count:,} keys new: first shard after "
        f"{again['seconds']:.1f} s and {again['peak_mb']:.0f} MB; all of it {again['whole_s']:.1f} s, "
        f"{again['whole_peak_mb']:.0f} MB"
    )
    console.print(f"nothing left to do: {nothing['whole_s']:.1f} s, {nothing['whole_peak_mb']:.0f} MB")


if __name__ == "__main__":
    main()
