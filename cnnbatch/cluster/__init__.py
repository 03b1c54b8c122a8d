"""Ray: which one is joined, what its nodes hold, and small work side by side on it."""
