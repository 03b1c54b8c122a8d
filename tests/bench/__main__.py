"""All benchmarks, one after the other: ``python -m tests.bench``."""

from tests.bench import decode, detect, engine, evaluation, evaluators, new, sources

decode.main()
engine.main()
detect.main()
sources.main()
new.main()
evaluation.main()
evaluators.main()
