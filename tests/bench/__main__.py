"""All benchmarks, one after the other: ``python -m tests.bench``."""

from tests.bench import (
    decode,
    detect,
    engine,
    evaluation,
    evaluators,
    forward,
    masks,
    new,
    scheduling,
    sources,
    training,
    whole,
)

decode.main()
forward.main(list(forward.MODELS))
scheduling.main()
engine.main(engine.COUNTS)
whole.main()
detect.main()
masks.main()
sources.main()
new.main()
evaluation.main()
evaluators.main()
training.main()
