"""Jobs that ask an index about a whole collection: ``search``, ``identify`` and ``verify``.

Images are embedded by a map job of its own, unless the input is an output that has their embeddings; then
every part of these embeddings is answered by itself, as one part of the question's output, on any worker. So
a part is done or not, a killed job continues, and no answer depends on how many workers there are.
"""
