"""All benchmarks, one after the other: ``python -m tests.bench``."""

from tests.bench import decode, engine

decode.main()
engine.main(engine.COUNT)
