"""The sections of a job as closed models, and how they are read from YAML and from the command line."""
