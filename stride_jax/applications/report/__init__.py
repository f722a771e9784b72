"""A run's answers as one page to open, search and share."""
