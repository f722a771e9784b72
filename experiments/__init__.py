"""Entry points: parse, call, print."""
