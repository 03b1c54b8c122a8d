"""Going on with a listing that is a folder's images, and then images that are known but not there."""

from __future__ import annotations

from cnnbatch.types import ImageRef


class ListingCursor:
    """Says of a folder's images, in their order, which lie behind ``after``.

    ``after`` may be one of them, also one that is gone by now, or one of the images that are not there: those
    have no etag, as a link that leads nowhere has none.
    """

    def __init__(self, after: ImageRef | None) -> None:
        self._after = after
        self._reached = after is None

    def takes(self, ref: ImageRef) -> bool:
        """Say whether the next image of the folder is wanted."""
        if self._reached or self._after is None:
            return True
        if self._after.etag is not None:
            return ref.uri > self._after.uri
        self._reached = ref.key == self._after.key and ref.etag is None
        return False

    def absent(self) -> ImageRef | None:
        """Return ``after`` where it is one of the images that are not there; asked at the folder's end."""
        return None if self._reached or self._after is None or self._after.etag is not None else self._after
