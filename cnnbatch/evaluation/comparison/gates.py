"""Numbers that a comparison must reach, as ``--fail-under`` names them: what makes a pipeline stop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cnnbatch.config.yaml import plain_scalar
from cnnbatch.errors import UserError
from cnnbatch.evaluation.comparison.differences import MetricDifference
from cnnbatch.evaluation.comparison.options import Gate
from cnnbatch.evaluation.judges import less_is_better
from cnnbatch.humanize import nearest
from cnnbatch.metrics import Value

AGREEMENT = "agreement"

_ROUNDING = 1e-9  # 0.85 - 0.86 is a little less than -0.01.


def read_gates(texts: Iterable[str]) -> list[Gate]:
    """Return the gates of texts as METRIC=NUMBER. Raises UserError for one that is none."""
    gates = []
    for text in texts:
        metric, _, number = text.rpartition("=")
        least = plain_scalar(number.strip())
        if not metric.strip() or isinstance(least, str | bool | None) or not math.isfinite(least):
            raise UserError(
                f"--fail-under: expected METRIC=NUMBER, as in AP=-0.01 or agreement=0.98; got {text!r}"
            )
        gates.append(Gate(metric.strip(), float(least)))
    return gates


def require_truth(gates: Iterable[Gate], known: bool) -> None:
    """Refuse gates that need a truth unless it is ``known`` in both outputs. Raises UserError."""
    for gate in gates:
        if gate.metric != AGREEMENT and not known:
            raise UserError(
                f"--fail-under {gate.metric}: both outputs need ground truth of the same images\n"
                f"  what to do: name {AGREEMENT}, or give the ground truth: cnnbatch evaluate OUT truth=FILE"
            )


def broken(
    gates: Sequence[Gate], agreement: Value, metrics: Mapping[str, MetricDifference] | None
) -> Iterator[str]:
    """Yield a sentence for each gate that is not reached; ``metrics`` is None without a truth.

    Raises UserError for a metric that is unknown, needs a truth, or has no value.
    """
    require_truth(gates, metrics is not None)
    for gate in gates:
        if gate.metric == AGREEMENT:
            what, value, reasons = AGREEMENT, agreement.value, [agreement.reason]
        else:
            found = _known(gate.metric, metrics or {})
            what, value = _gain(gate.metric, found)
            reasons = [found.a.reason, found.b.reason]
        if value is None:
            reason = next(filter(None, reasons), "unknown why")
            raise UserError(f"--fail-under {gate.metric}: there is no such number: {reason}")
        if value < gate.least - _ROUNDING:
            yield f"failed: {what} is {value:.4f}, below {gate.least:g}"


def _gain(metric: str, found: MetricDifference) -> tuple[str, float | None]:
    """Return what is compared with the gate, in words and as a number."""
    if less_is_better(metric):
        return f"A - B of {metric}", None if found.value is None else -found.value
    return f"B - A of {metric}", found.value


def _known(name: str, metrics: Mapping[str, MetricDifference]) -> MetricDifference:
    if name not in metrics:
        known = [AGREEMENT, *metrics]
        near = nearest(name, known)
        hint = f"did you mean {near}?" if near else f"known here: {', '.join(known)}"
        raise UserError(f"--fail-under: there is no metric {name!r}; {hint}")
    return metrics[name]
