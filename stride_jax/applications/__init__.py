"""Uses of a finished run."""
