"""Foundations: mesh, checkpoints, files, progress."""
