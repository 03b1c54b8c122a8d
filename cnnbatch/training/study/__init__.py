"""Studies: many trainings of one template, told apart by what varies, each an output of its own."""
