"""What people do with a finished run."""
