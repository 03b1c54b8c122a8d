"""The product quantiser: what is said of a vector in 4 bits for every two of its dimensions.

Jégou, Douze and Schmid, "Product quantization for nearest neighbor search", 2011; 4 bits each, so that the
tables of distances fit in registers (André, Kermarrec and Le Scouarnec, "Cache locality is not enough",
2015). It is trained once for an index, so that codes of rows that are added later compare with the others.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
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


@dataclass(frozen=True, slots=True)
class Codebook:
    """``centroids`` (M, 16, 2) float32 of M parts of a vector; one of odd length ends with a zero more."""

    centroids: NDArray[np.float32]

    @property
    def code_bytes(self) -> int:
        """How long a code is: two parts share a byte."""
        return (len(self.centroids) + 1) // 2

    def encode(self, vectors: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
        """Return the codes (N, C) of vectors (N, D): of each part the number of the nearest centroid.

        The first part of two is in the lower half of a byte.
        """
        quantizer = _quantizer(len(self.centroids))
        self.set_in(quantizer)
        codes: NDArray[np.uint8] = quantizer.compute_codes(padded(vectors))
        return codes

    def set_in(self, quantizer: faiss.ProductQuantizer) -> None:
        """Give the centroids to FAISS's quantiser of as many parts."""
        faiss = imported()
        flat = np.ascontiguousarray(self.centroids, np.float32).ravel()
        faiss.copy_array_to_vector(flat, quantizer.centroids)

    def to_bytes(self) -> bytes:
        """Return the codebook as a file: NumPy's format, version 1.0."""
        file = io.BytesIO()
        np.lib.format.write_array(file, self.centroids, (1, 0), allow_pickle=False)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Codebook:
        """Return the codebook that a file holds."""
        return cls(np.lib.format.read_array(io.BytesIO(data), allow_pickle=False))


LEAST = 256
"""Vectors that it takes to train a codebook."""


def train(vectors: NDArray[np.floating[Any]]) -> Codebook:
    """Return a codebook for vectors like these (N, D), by k-means in each part; it is the same each time.

    There have to be `LEAST` vectors.
    """
    faiss = imported()
    sample = padded(vectors)
    quantizer = _quantizer(sample.shape[1] // PART)
    quantizer.cp.min_points_per_centroid = 1  # Else it prints that there could be more.
    with threads(1):  # Sums in another order would give another codebook.
        quantizer.train(sample)
    flat = faiss.vector_to_array(quantizer.centroids)
    return Codebook(flat.reshape(-1, 1 << BITS, PART).astype(np.float32))


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
