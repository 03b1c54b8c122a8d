"""All benchmarks, one after the other: ``python -m tests.bench``."""

from tests.bench import decode, detect, engine, new

decode.main()
engine.main()
detect.main()
new.main()
