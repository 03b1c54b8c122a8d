"""From a job's input to a tree: which part of it is the ground truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnnbatch.errors import UserError
from cnnbatch.sources.masks.trees import CLASSES, OBJECTS, masks_of_tree
from cnnbatch.sources.renamed import with_names
from cnnbatch.sources.voc.masks import open_mask_tree
from cnnbatch.sources.voc.source import open_xml_tree, root_of
from cnnbatch.storage import redact

if TYPE_CHECKING:
    from cnnbatch.config.input import Input
    from cnnbatch.storage import Storage
    from cnnbatch.types import Source


def open_voc(input: Input, storage: Storage) -> Source:
    """Return the source of a PASCAL VOC tree (``VOC2007``, or one of the same folders).

    Its ground truth are the objects of its XML files, or what ``input.truth`` names of its masks.
    """
    if input.truth is not None:
        root = root_of(input)
        folder = masks_of_tree(root, input.truth)
        if folder is None:
            raise UserError(
                f"input.truth: of a VOC tree it is {CLASSES} or {OBJECTS}, got {redact(input.truth)}\n"
                "  what to do: give one of them, or leave it out for the XML files"
            )
        return open_mask_tree(input, storage, root, folder)
    if input.ignore:
        raise UserError(
            "input.ignore: it is for the values of masks, and XML files have none\n"
            f"  what to do: leave it out, or read the tree's masks by input.truth={CLASSES}"
        )
    tree = open_xml_tree(input, storage)
    return with_names(tree, input.relabel) if input.relabel else tree
