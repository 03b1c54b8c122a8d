"""How much a network's frozen features tell of classes that it was not trained for: three measures.

Pure functions of features [N, D] and class numbers [N]; the price of a closed form is a linear probe by
ridge regression, a little below logistic regression.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]
Classes = NDArray[np.int64]

FOLDS = 5
NEIGHBOURS = 5


def standardized(features: NDArray[np.float32]) -> Features:
    """Return features of mean 0 and deviation 1 each, [N, D]."""
    found = features.astype(np.float64)
    scaled: Features = (found - found.mean(0)) / (found.std(0) + 1e-9)
    return scaled


def nearest_neighbours(features: Features, classes: Classes, k: int = NEIGHBOURS) -> float:
    """Return the accuracy of a vote of the ``k`` nearest others by cosine; ties go to the nearest."""
    unit = features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-12)
    k = min(k, len(unit) - 1)
    if k < 1:
        return 0.0
    right = 0
    for start in range(0, len(unit), 1024):
        similar = unit[start : start + 1024] @ unit.T
        similar[np.arange(len(similar)), np.arange(start, start + len(similar))] = -np.inf
        nearest = np.argsort(-similar, axis=1, kind="stable")[:, :k]
        for votes, true in zip(classes[nearest], classes[start : start + 1024], strict=True):
            counts = np.bincount(votes)
            best = np.flatnonzero(counts == counts.max())
            right += next(vote for vote in votes if vote in best) == true
    return right / len(unit)


def linear_probe(features: Features, classes: Classes, folds: int = FOLDS, seed: int = 0) -> float:
    """Return the accuracy of a linear classifier on images that it was not fitted to, over ``folds``.

    Ridge regression onto one column a class; the penalty is the mean eigenvalue of the features' covariance.
    """
    count = len(features)
    folds = min(folds, count)
    if folds < 2:
        return 0.0
    fold = np.random.default_rng(seed).permutation(count) % folds
    right = 0
    for number in range(folds):
        fit, judge = fold != number, fold == number
        scores = _ridge(features[fit], classes[fit], int(classes.max()) + 1, features[judge])
        right += int((scores.argmax(1) == classes[judge]).sum())
    return right / count


def _ridge(fit: Features, classes: Classes, count: int, judge: Features) -> Features:
    centre = fit.mean(0)
    targets = np.eye(count)[classes]
    mean = targets.mean(0)
    fit = fit - centre
    kernel = fit @ fit.T  # In the dual: there are often fewer images than features.
    penalty = max(np.trace(kernel) / max(len(fit), 1), 1e-9)
    weights = np.linalg.solve(kernel + penalty * np.eye(len(fit)), targets - mean)
    found: Features = (judge - centre) @ (fit.T @ weights) + mean
    return found


def log_evidence(features: Features, classes: Classes) -> float:
    """Return LogME: the greatest log evidence of linear models, a mean over images and classes.

    You et al. 2021, "LogME: practical assessment of pre-trained models for transfer learning", algorithm 1.
    """
    count, size = features.shape
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    squares = singular**2
    evidences = []
    for number in range(int(classes.max()) + 1):
        target = (classes == number).astype(np.float64)
        projected = (left.T @ target) ** 2
        rest = max(float(target @ target - projected.sum()), 0.0)
        alpha = beta = 1.0
        for _ in range(11):
            ratio = alpha / beta
            effective = float((squares / (squares + ratio)).sum())
            length = float((squares * projected / (squares + ratio) ** 2).sum())
            error = float((projected * (ratio / (squares + ratio)) ** 2).sum()) + rest
            alpha, beta = effective / (length + 1e-12), (count - effective) / (error + 1e-12)
            if abs(alpha / beta - ratio) / ratio < 1e-3:
                break
        determinant = np.log(alpha + beta * squares).sum() + (size - len(squares)) * np.log(alpha)
        evidence = size * np.log(alpha) + count * np.log(beta) - count * np.log(2 * np.pi) - determinant
        evidences.append(float(evidence - beta * error - alpha * length) / (2 * count))
    return float(np.mean(evidences))
