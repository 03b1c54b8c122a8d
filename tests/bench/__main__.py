"""All benchmarks, one after the other: ``python -m tests.bench``."""

from tests.bench import decode, detect, engine, evaluation, evaluators, forward, new, sources, training, whole

decode.main()
forward.main(list(forward.MODELS))
engine.main(engine.COUNTS)
whole.main()
detect.main()
sources.main()
new.main()
evaluation.main()
evaluators.main()
training.main()
