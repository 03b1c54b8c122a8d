"""Ways to run a network: eager, compiled, OpenVINO, folded, or in parts."""
