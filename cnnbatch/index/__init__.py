"""An index of embeddings: built by a job from the outputs of others, searched without Ray and without torch.

What lies in an index:

```
INDEX/manifest.json              the index's state: replaced last, and only if its etag is the one read
INDEX/segments/NAME.parquet      at most 8,192 embeddings each: immutable, named by what they are made of
INDEX/codebooks/NAME.npy         the centroids of the product quantiser: one, trained once
INDEX/evaluation.json            recall, size and time
INDEX/calibration.json           what similarities mean, where that was measured
```

A reader that has a manifest has a state of the index, whole: objects that it does not name are no part of it.
Rows that are gone are named in the manifest (`manifest.SegmentEntry.gone`) until `compact` writes their
segments anew without them.
"""
