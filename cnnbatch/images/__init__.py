"""From an image file's bytes to upright RGB pixels, or to the reason why there are none."""
