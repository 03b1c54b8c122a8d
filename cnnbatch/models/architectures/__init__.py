"""Networks that are built here, layer by layer, from their papers or their configuration files."""
