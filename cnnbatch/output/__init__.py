"""An output folder: its plan, its parts, its records, and how it is read back."""
