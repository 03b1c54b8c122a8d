"""The main path of a job that groups the faces of an index into persons, as ``cnnbatch group`` does."""

from __future__ import annotations

import time

from cnnbatch.index.persons import evaluating
from cnnbatch.index.persons.group import group as grouped
from cnnbatch.index.persons.group import lines, similarity_of
from cnnbatch.index.search import open_index
from cnnbatch.inference.run import RunOptions, Summary
from cnnbatch.job import GroupJob
from cnnbatch.storage import Storage, normalize, redact
from cnnbatch.terminal.screen import Screen


def group(job: GroupJob, options: RunOptions | None = None) -> Summary:
    """Group what is not of a person yet, or measure what grouping would give; return what was done.

    Raises UserError, EnvironmentFault or OutputHeld: the index is then as it was.
    """
    options = options or RunOptions()
    began = time.monotonic()
    uri, storage, how = normalize(job.input.url), Storage(job.input.storage), job.group
    new, total, found = 0, 0, {}
    with Screen(options.quiet) as screen:
        if how.evaluate is not None:
            screen.doing("measuring")
            index = open_index(uri, storage)
            total = len(index)
            similarity = similarity_of(index, how.similarity)
            said = evaluating.lines([*evaluating.evaluate(index, how.evaluate, similarity)])
        else:
            screen.doing("grouping")
            done = grouped(uri, how.similarity, how.unsure, how.anew, storage)
            faces = done.persons.faces
            new, total, said = done.new, faces.num_rows, lines(done)
            found = {"persons": len(done.persons.sizes()), "unsure": faces["person"].null_count}
        for line in said:
            screen.say(line)
    return Summary(
        output=uri,
        images=new,
        total=total,
        failed={},
        seconds=round(time.monotonic() - began, 3),
        exit_status=0,
        found=found,
        paths={"index": redact(uri)},
    )
