"""Inside one worker: read, decode, prepare, forward, rows."""
