"""All benchmarks, one after the other: ``python -m tests.bench``."""

from tests.bench import (
    decode,
    detect,
    engine,
    evaluation,
    evaluation_maps,
    evaluators,
    face_detection,
    faces,
    forward,
    index,
    index_questions,
    index_rivals,
    masks,
    new,
    scheduling,
    segment,
    segment_training,
    serving,
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
segment.main()
masks.main()
face_detection.main()
faces.main()
sources.main()
new.main()
evaluation.main()
evaluation_maps.main()
evaluators.main()
training.main()
segment_training.main()
index.main()
index.main(cores=2)
index.main(300_000, 512)
index_questions.main()
index_rivals.main()
serving.main()
