"""Foundations: mesh, checkpoints, files, processes, progress."""
