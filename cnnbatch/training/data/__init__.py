"""The images of a training: which train and validate, in what order, and how they are loaded."""
