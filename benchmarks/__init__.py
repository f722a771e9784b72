"""Measured comparisons, each writes JSON."""
