"""Methods that STRIDE is compared with: one file per method, one pair of functions.

`fit(model, train, settings)` gives a state, `score(state, model, train, query, settings)` the
scores, `[query, train]`.
"""
