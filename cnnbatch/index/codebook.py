"""The product quantiser: what is said of a vector in 4 bits for every two of its dimensions.

Jégou, Douze and Schmid, "Product quantization for nearest neighbor search", 2011; 4 bits each, so that the
tables of distances fit in registers (André, Kermarrec and Le Scouarnec, "Cache locality is not enough",
2015). It is trained once for an index, so that codes of rows that are added later compare with the others.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cnnbatch.errors import UserError

if TYPE_CHECKING:
    import faiss

BITS = 4
PART = 2
"""Dimensions that share 4 bits."""
TRAINED_ON = 4_096
"""Vectors that a codebook is trained on, at most: FAISS takes no more for 16 centroids."""


Nearest = Callable[[NDArray[np.float32]], NDArray[np.uint8]]
"""Returns of vectors (N, 2 M) the number of the nearest centroid of each part, (M, N)."""
LIST_TRAINED_ON = 64
"""Vectors for each inverted list that these are trained on, at most."""


@dataclass(frozen=True, slots=True)
class Codebook:
    """``centroids`` (M, 16, 2) float32 of M parts of a vector; one of odd length ends with a zero more.

    ``lists`` (L, 2 M) float32 of length 1, where there are inverted lists: a vector is in that of the most
    similar.
    """

    centroids: NDArray[np.float32]
    lists: NDArray[np.float32] | None = None

    @property
    def code_bytes(self) -> int:
        """How long a code is."""
        count = 0 if self.lists is None else len(self.lists)
        return bytes_of_codes(PART * len(self.centroids), count)

    def encode(self, vectors: NDArray[np.floating[Any]], nearest: Nearest | None = None) -> NDArray[np.uint8]:
        """Return the codes (N, C) of vectors (N, D): of each part the number of the nearest centroid.

        Two parts share a byte, the first is in its lower half. Before them is the number of the list, if
        there are any, its lowest byte first. ``nearest`` may find the numbers in another way than FAISS.
        """
        single = padded(vectors)
        codes = self._faiss_codes(single) if nearest is None else _in_halves(nearest(single))
        if self.lists is None:
            return codes
        _, numbers = imported().knn(single, self.lists, 1, imported().METRIC_INNER_PRODUCT)
        in_bytes = numbers.astype("<i8").view(np.uint8)[:, : _bytes_of_number(len(self.lists))]
        return np.hstack([in_bytes, codes])

    def _faiss_codes(self, vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
        quantizer = _quantizer(len(self.centroids))
        self.set_in(quantizer)
        codes: NDArray[np.uint8] = quantizer.compute_codes(vectors)
        return codes

    def set_in(self, quantizer: faiss.ProductQuantizer) -> None:
        """Give the centroids to FAISS's quantiser of as many parts."""
        faiss = imported()
        flat = np.ascontiguousarray(self.centroids, np.float32).ravel()
        faiss.copy_array_to_vector(flat, quantizer.centroids)

    def to_bytes(self) -> bytes:
        """Return the codebook as a file: one or two arrays in NumPy's format, version 1.0."""
        file = io.BytesIO()
        for array in (self.centroids, self.lists):
            if array is not None:
                np.lib.format.write_array(file, array, (1, 0), allow_pickle=False)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Codebook:
        """Return the codebook that a file holds."""
        file, arrays = io.BytesIO(data), []
        while file.tell() < len(data):
            arrays.append(np.lib.format.read_array(file, allow_pickle=False))
        return cls(*arrays)


def _in_halves(numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return numbers below 16 of M parts, (M, N), as codes (N, C)."""
    codes = numbers[::2].copy()
    codes[: len(numbers) // 2] |= numbers[1::2] << BITS
    return np.ascontiguousarray(codes.T)


def bytes_of_codes(dimensions: int, lists: int) -> int:
    """Return how long the codes of vectors are, with so many inverted lists; 0: without any."""
    return (-(-dimensions // PART) + 1) // 2 + _bytes_of_number(lists)


def _bytes_of_number(count: int) -> int:
    """Return how many bytes the numbers below ``count`` take, as FAISS counts them."""
    return (max(0, count - 1).bit_length() + 7) // 8


LEAST = 256
"""Different vectors that it takes to train a codebook."""
MEMBERS = 30
"""Vectors whose mean a centroid is, at least: one of fewer could show a vector, even a forgotten one."""


def train(vectors: NDArray[np.floating[Any]], lists: int = 0) -> Codebook | None:
    """Return a codebook for vectors like these (N, D), by k-means in each part; it is the same each time.

    Equal vectors count once. None where fewer than `LEAST` are different. There are at most as many inverted
    ``lists`` as were asked for.
    """
    faiss = imported()
    every = np.unique(padded(vectors), axis=0)
    if len(every) < LEAST:
        return None
    sample = every[evenly(len(every), TRAINED_ON)]
    parts = sample.shape[1] // PART
    quantizer = _quantizer(parts)
    quantizer.cp.min_points_per_centroid = 1  # Else it prints that there could be more.
    with threads(1):  # Sums in another order would give another codebook.
        quantizer.train(sample)
        begun = faiss.vector_to_array(quantizer.centroids).reshape(parts, 1 << BITS, PART)
        points = sample.reshape(len(sample), parts, PART).swapaxes(0, 1)
        means = np.stack([means_of_many(*one) for one in zip(points, begun, strict=True)])
        return Codebook(means, _lists(every, lists) if lists else None)


def _lists(vectors: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return the centroids of at most ``count`` inverted lists, (L, D) of length 1, by spherical k-means."""
    count = min(count, len(vectors) // MEMBERS)
    clustering = imported().Kmeans(
        vectors.shape[1], count, niter=10, spherical=True, min_points_per_centroid=1
    )
    clustering.train(vectors)
    means = np.unique(means_of_many(vectors, clustering.centroids), axis=0)
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)


def means_of_many(points: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the means (K, D) of those of the points (N, D) that are nearest to each of the centroids (K, D).

    Centroids to which fewer than `MEMBERS` points are nearest are left out, the smaller half of them first;
    the last of the others stands in their places.
    """
    count = len(centroids)
    while True:
        _, nearest = imported().knn(points, centroids, 1)
        members = np.bincount(nearest[:, 0], minlength=len(centroids))
        few = int((members < MEMBERS).sum())
        if not few:
            break
        centroids = np.delete(centroids, np.argsort(members, kind="stable")[: -(-few // 2)], axis=0)
    sums = np.zeros(centroids.shape, np.float64)
    np.add.at(sums, nearest[:, 0], points)
    means = (sums / members[:, None]).astype(np.float32)
    return np.pad(means, ((0, count - len(means)), (0, 0)), mode="edge")


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """Return at most ``most`` of the numbers below ``count``, ascending, at equal distances."""
    return np.unique(np.arange(min(count, most)) * count // max(1, min(count, most)))


def padded(vectors: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return vectors as float32 of even length: (N, D) to (N, D) or (N, D + 1)."""
    single = np.ascontiguousarray(vectors, np.float32)
    return np.pad(single, ((0, 0), (0, 1))) if single.shape[1] % PART else single


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let FAISS use so many threads inside the block."""
    faiss = imported()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def imported() -> Any:
    """Return FAISS, which takes a moment to import; raises UserError where it is not installed."""
    try:
        import faiss
    except ImportError:
        raise UserError(
            "an index needs FAISS, which is not installed\n  what to do: pip install 'cnnbatch[index]'"
        ) from None
    return faiss


def _quantizer(parts: int) -> Any:
    return imported().ProductQuantizer(parts * PART, parts, BITS)
