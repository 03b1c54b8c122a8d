"""Forgets in an output as `cnnbatch forget` does, and searches the bytes of a folder for what is gone."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cnnbatch.evaluation.again import again
from cnnbatch.output.folder import Output
from cnnbatch.output.forgetting import Rewritten, erase, rewrite
from cnnbatch.output.forgotten import Box, Suppression, finish, key_hmac, secret_of, suppress
from cnnbatch.storage import Storage


def forget(
    out: Path | Output,
    *keys: str,
    objects: Sequence[tuple[str, Box]] = (),
    name: str | None = None,
    shards: Sequence[int] | None = None,
) -> Rewritten:
    """Forget photos by their keys, and objects by the key and the box; the same ``name`` goes on."""
    output = out if isinstance(out, Output) else Output(str(out), Storage())
    name, secret = name or uuid4().hex, secret_of(output)
    model = (output.decided("identity") or {})["weights"]
    entries = [Suppression(key_hmac(secret, key)) for key in keys]
    entries += [Suppression(key_hmac(secret, key), box, model) for key, box in objects]
    suppress(output, name, entries, "INDEX")
    rewritten = rewrite(output, name, shards)
    rewritten = rewritten.also(again(output))
    erase(output, rewritten)
    finish(output, name)
    return rewritten


def box_of(one: dict[str, Any]) -> Box:
    """Return the box of an object of a row."""
    x1, y1, x2, y2 = one["box"].values()
    return x1, y1, x2, y2


def traces(folder: Path, texts: Sequence[str] = (), vectors: Sequence[Any] = ()) -> set[str]:
    """Return the files below ``folder`` that hold a text, or a vector as float32 or float16.

    Their bytes are searched, and all strings, bytes and lists of floats in Parquet files.
    """
    patterns = [text.encode() for text in texts]
    patterns += [np.asarray(one, kind).tobytes() for one in vectors for kind in (np.float32, np.float16)]
    patterns += [base64.b64encode(text.encode()).rstrip(b"=")[:-1] for text in texts]
    return {
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and any(pattern in data for data in _bytes(path) for pattern in patterns)
    }


def _bytes(path: Path) -> Iterator[bytes]:
    yield str(path).encode()
    yield path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        yield str(table.schema.metadata).encode()
        for column in table.columns:
            for chunk in column.chunks:
                yield from _leaves(chunk)


def _leaves(array: Any) -> Iterator[bytes]:
    """Yield the bytes of all leaves of an array."""
    kind = array.type
    if pa.types.is_struct(kind):
        for child in array.flatten():
            yield from _leaves(child)
    elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _leaves(array.flatten())
    elif pa.types.is_floating(kind):
        yield np.asarray(array.drop_null(), np.float32).tobytes()
        yield np.asarray(array.drop_null(), np.float32).astype(np.float16).tobytes()
    elif pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        for value in array.to_pylist():
            yield value.encode() if isinstance(value, str) else value or b""
