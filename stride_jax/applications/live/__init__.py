"""A run that answers questions over HTTP: the line of questions, what they say, the server."""
