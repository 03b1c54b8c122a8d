"""What is known of an index in numbers: ``evaluation.json``, and lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cnnbatch.humanize import counted, number
from cnnbatch.index.building import Built
from cnnbatch.index.embeddings import in_words
from cnnbatch.index.manifest import Manifest, Recall, Verification
from cnnbatch.index.recall import NEAREST
from cnnbatch.metrics import Value
from cnnbatch.metrics.intervals import wilson
from cnnbatch.output.evaluation import Evaluation
from cnnbatch.storage import NotFound, Storage, join, redact

_EXACT = Value(None, reason="every search compares all vectors, so nothing is missed")


def evaluation_of(manifest: Manifest) -> Evaluation:
    """Return what is measured of an index, as it stands in ``evaluation.json``."""
    metrics = {
        **_recalls(manifest.recall),
        **(_verified(manifest.verification) if manifest.verification else {}),
        "refine": Value(float(manifest.refine), count=manifest.live),
        "bytes": Value(float(manifest.bytes), count=manifest.live),
        "build_seconds": Value(manifest.build_seconds, count=manifest.live),
    }
    if manifest.codebook is None:
        metrics |= {"recall@10": _EXACT, "recall@1": _EXACT}
        del metrics["refine"]
    people = manifest.people or ""
    return Evaluation("index", manifest.live, 0, people, metrics, notes=manifest.left_out())


def put_evaluation(uri: str, storage: Storage, manifest: Manifest) -> None:
    """Write ``evaluation.json``, unless it says the same."""
    place, data = join(uri, "evaluation.json"), evaluation_of(manifest).to_json().encode()
    try:
        if storage.read(place) == data:
            return
    except NotFound:
        pass
    storage.put(place, data)


def lines(uri: str, built: Built) -> Iterator[str]:
    """Yield what a run has done, and what the index is now."""
    manifest = built.manifest
    if not (built.added or built.removed):
        yield f"nothing to do: the index has all {number(manifest.live)} embeddings of its outputs"
    else:
        gone = f", {number(built.removed)} of before are gone" if built.removed else ""
        yield f"{counted(built.added, 'embedding')} added{gone}"
    yield from about(manifest)
    yield f"  index: {redact(uri)}"
    if built.has_measured:
        yield f"  report: {redact(join(uri, 'report.html'))}"


def about(manifest: Manifest) -> Iterator[str]:
    """Yield what an index is."""
    segments = counted(len(manifest.segments), "segment")
    yield f"  {counted(manifest.live, 'embedding')} of {in_words(manifest.embedding_space)} in {segments}"
    if manifest.codebook is None and manifest.live < manifest.exact_below:
        yield f"  searched exactly, until there are {number(manifest.exact_below)} embeddings"
    elif manifest.codebook is None:
        yield "  searched exactly: too few embeddings differ for codes that show none of them"
    elif manifest.recall is not None:
        lists = f" of {manifest.probes} of {manifest.lists} lists" if manifest.lists else ""
        yield f"  searched by codes{lists}; recall@10 {_share(manifest.recall)}"
    if manifest.verification is not None:
        yield f"  people by {manifest.verification.people}: {_equal_errors(manifest.verification)}"
    for reason, count in manifest.left_out().items():
        yield f"  left out: {number(count)} {reason}"
    if gone := sum(one.rows - one.live for one in manifest.segments):
        yield f"  {counted(gone, 'row')} no longer searched, until cnnbatch index compact removes them"


def as_json(manifest: Manifest) -> dict[str, Any]:
    """Return what an index is, as JSON values."""
    return {
        "embeddings": manifest.live,
        "gone": sum(one.rows - one.live for one in manifest.segments),
        "segments": len(manifest.segments),
        "bytes": manifest.bytes,
        "space": manifest.space,
        "kept": manifest.kept,
        "outputs": [one.url for one in manifest.outputs],
        "exact": manifest.codebook is None,
        "refine": manifest.refine,
        "lists": manifest.lists,
        "probes": manifest.probes,
        "recall": manifest.recall.model_dump() if manifest.recall else None,
        "people": manifest.people,
        "verification": manifest.verification.model_dump() if manifest.verification else None,
        "left_out": manifest.left_out(),
    }


def _recalls(recall: Recall | None) -> dict[str, Value]:
    if recall is None:
        return {}
    found = {
        "recall@10": _value(recall.at_10, recall.probes * NEAREST),
        "recall@1": _value(recall.at_1, recall.probes),
    }
    if recall.matches is not None:
        found["recall_of_matches"] = _value(recall.matches, recall.match_count)
    return found


def _verified(found: Verification) -> dict[str, Value]:
    return {name: measured.as_value() for name, measured in found.metrics.items()}


def _equal_errors(found: Verification) -> str:
    rate = found.metrics["EER"]
    if rate.value is None:
        return f"no EER, since {rate.reason}"
    interval = "" if rate.low is None else f" (95 % CI {rate.low:.4f}–{rate.high:.4f})"
    return f"EER {rate.value:.4f}{interval} over {counted(rate.count, 'pair')}"


def _value(share: float, count: int) -> Value:
    low, high = wilson(round(share * count), count)
    return Value(share, low, high, count)


def _share(recall: Recall) -> str:
    low, high = wilson(round(recall.at_10 * recall.probes * NEAREST), recall.probes * NEAREST)
    interval = f" (95 % CI {low:.3f}–{high:.3f})" if low is not None else ""
    return f"{recall.at_10:.4f}{interval} over {counted(recall.probes, 'probe')}"
