"""What made the output: headline numbers, versions, weights and the job, without what is secret."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from cnnbatch.humanize import decimal, duration, number, percent
from cnnbatch.sources.files.left_out import in_words
from cnnbatch.storage import redact

if TYPE_CHECKING:
    from cnnbatch.output.reader import Footer
    from cnnbatch.report.plots import Timeline
    from cnnbatch.report.tally import RowCounts

LONGEST_LIST = 20


class Fact(NamedTuple):
    """A value under its name; ``note`` says more, ``link`` leads to a section of the page."""

    name: str
    value: str
    note: str = ""
    link: str = ""


def headline(footers: Sequence[Footer], counts: RowCounts, timeline: Timeline | None) -> list[Fact]:
    """Return the numbers at the head of the page; what is not known is left out."""
    failed = counts.failed.total()
    facts = [
        Fact("Images", number(counts.rows), ", ".join(_no_longer(counts))),
        Fact("Failed", number(failed), percent(failed / counts.rows), "failures")
        if failed
        else Fact("Failed", "0"),
    ]
    if timeline:
        facts += [
            Fact("Images/s", decimal(timeline.mean)),
            Fact("Processing time", duration(timeline.seconds)),
        ]
    facts += [
        Fact("Workers", _workers(footers)),
        Fact("Hosts", _hosts(footers)),
        Fact("Device", _distinct(str(footer.info.get("device", "")).split(":")[0] for footer in footers)),
        Fact("Precision", _distinct(footer.info.get("precision", "") for footer in footers)),
    ]
    return [fact for fact in facts if fact.value]


def _no_longer(counts: RowCounts) -> Iterator[str]:
    """Yield how many images are no longer there, and why."""
    if counts.vanished:
        yield f"{number(counts.vanished)} vanished since"
    if counts.forgotten:
        yield f"{number(counts.forgotten)} forgotten"


def left_out_fact(counts: Mapping[str, int]) -> list[Fact]:
    """Return how many files of the input are no images, by suffix; nothing where there are none."""
    return (
        [Fact("Left out", number(sum(counts.values())), f"no images: {in_words(counts)}")] if counts else []
    )


def pixel_facts(counted: int, others: int) -> list[Fact]:
    """Return how many pixels of a ground truth count, and how many others there are."""
    share = f"{percent(others / (counted + others))} of all" if others else ""
    return [
        Fact("Pixels", number(counted)),
        Fact("Not counted", number(others) if others else "none", share),
    ]


def environment(footers: Sequence[Footer]) -> list[Fact]:
    """Return the weights, their licence, and the versions; several where parts were made differently."""
    versions: dict[str, set[str]] = {}
    for footer in footers:
        for name, version in (footer.info.get("versions") or {}).items():
            versions.setdefault(str(name), set()).add(str(version))
    facts = [
        Fact("Weights (SHA-256)", _distinct(footer.info.get("weights", "") for footer in footers)),
        Fact("Licence of the weights", _distinct(footer.info.get("licence", "") for footer in footers)),
        Fact("Fingerprint of the job", _distinct(footer.info.get("fingerprint", "") for footer in footers)),
        *(Fact(name, _distinct(found)) for name, found in versions.items()),
    ]
    return [fact for fact in facts if fact.value]


def job_yaml(settings: Mapping[str, Any]) -> str:
    """Return the job as YAML: addresses without what is secret in them, long lists cut."""
    return (
        yaml.safe_dump(_shown(settings), sort_keys=False, allow_unicode=True, width=100) if settings else ""
    )


def _shown(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _shown(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        rest = len(value) - LONGEST_LIST
        return [*map(_shown, value[:LONGEST_LIST]), *([f"… and {number(rest)} more"] if rest > 0 else [])]
    return redact(value) if isinstance(value, str) and "://" in value else value


def _workers(footers: Iterable[Footer]) -> str:
    found = {
        (footer.info.get("host"), footer.info["worker"]) for footer in footers if "worker" in footer.info
    }
    return number(len(found)) if found else ""


def _hosts(footers: Iterable[Footer]) -> str:
    hosts = {footer.info["host"] for footer in footers if footer.info.get("host")}
    return number(len(hosts)) if len(hosts) > 1 else ""


def _distinct(values: Iterable[Any]) -> str:
    found = sorted({str(value) for value in values if value})
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
