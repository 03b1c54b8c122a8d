"""Studies: many trials of one template, which differ by what varies, each an output of its own."""
