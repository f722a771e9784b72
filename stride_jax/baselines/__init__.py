"""Opponents: `(tapped, params, train, query, settings) -> [query, train] scores`."""
