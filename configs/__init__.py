"""One file a run: a reproduction record."""
