"""Studies that train nothing: cases that are predicted and judged, side by side in one table."""
