"""Who competes: every method with its grid of settings.

Each may try as many settings as the others, at most ten, chosen on bank subsets that the final
figure does not use; STRIDE's closed form has one, its default. Settings in one inner list share a
fit. `docs/add_a_method.md` says how another is added.
"""

from collections.abc import Sequence
from typing import Any

from benchmarks.methods import (
    Method,
    Stride,
    changed,
    fit_direct,
    fit_stride,
    score_direct,
    score_stride,
)
from stride_jax.baselines import (
    ekfac,
    gauss_newton,
    gradients,
    knn_shapley,
    less,
    logra,
    representer,
    simple,
    source,
    text,
    trackstar,
    trak,
)
from stride_jax.baselines import encoder as encoders
from stride_jax.baselines.encoder import EncoderSettings

DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


def contestants(
    names: Sequence[str],
    base: Stride,
    *,
    is_text: bool = False,
    only: Sequence[str] = (),
    encoder: EncoderSettings | None = None,
    checkpoints: int = 1,
) -> list[Method]:
    """Every method that fits the data, STRIDE first, whose closed form is not tuned at all.

    Args:
      names: the model's taps.
      base: STRIDE's settings.
      is_text: whether inputs are tokens or strings.
      only: names of the methods wanted; all for none.
      encoder: a sentence encoder, for texts; None to leave it out.
      checkpoints: that the model has.
    """
    methods = [*_of_stride(base, is_text), *_of_gradients(), _source(checkpoints)]
    methods += [*_of_activations(names, is_text), *(_of_texts(encoder) if is_text else [])]
    if unknown := set(only) - {method.name for method in methods}:
        raise ValueError(
            f"no method {min(unknown)!r} here: use some of {[method.name for method in methods]}"
        )
    return [method for method in methods if not only or method.name in only]


def _of_stride(base: Stride, is_text: bool) -> list[Method]:
    small = 3 * base.index.design.num_subsets // 10
    fewer = changed(base, {"index.design.num_subsets": small})
    # Of texts: a query read whole; every logit steered; the last residual stream in their place.
    variants = {
        "whole": changed(base, {"read.measure.group": 0}),
        "full": changed(base, {"index.output_rank": 0, "index.closed_form.output_damping": 1.0}),
        "residual": changed(base, {"index.sites": ("final",)}),
    }
    of_texts = [
        Method(f"stride-{name}", fit_stride, score_stride, [[settings]])
        for name, settings in variants.items()
    ]
    return [
        Method("stride", fit_stride, score_stride, [[base]]),
        *(of_texts if is_text else []),
        Method(f"stride-k{small}", fit_stride, score_stride, [[fewer]]),
        Method("stride-direct", fit_direct, score_direct, [[base]]),
        Method("stride-joint", fit_stride, score_stride, _joint_grid(base)),
    ]


def _joint_grid(base: Stride) -> list[list[Stride]]:
    """Joint training: lambda, at full scale and at a small one; one fit for all."""
    rank = min(64, base.index.basis.rank)
    joint = changed(base, {"index.fit": "joint", "index.basis.rank": rank, "read.prior": 0.0})
    return [
        [
            changed(joint, {"read.lasso.lambda_fraction": fraction, "read.measure.scale": scale})
            for fraction in (0.05, 0.1, 0.2)
            for scale in (1.0, 0.01)
        ]
    ]


def _of_gradients() -> list[Method]:
    g, e, n = gradients.GradientSettings, ekfac.EkfacSettings, gauss_newton.GaussNewtonSettings

    def every(module: Any, name: str, grid: Sequence[Sequence[Any]]) -> Method:
        return Method(name, module.fit, module.score, grid)

    # An iteration costs passes over the whole set for every query: small ones were never best.
    solved = [d for d in DAMPINGS if d >= 0.1]
    sides = [("pca", (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)), ("random", (1e-1, 1.0, 10.0))]
    return [
        every(gradients, "grad-dot", [[g()]]),
        every(gradients, "grad-cos", [[g(cosine=True)]]),
        every(
            gradients, "tracin",
            [[g(all_checkpoints=True)], [g(all_checkpoints=True, cosine=True)]],
        ),
        every(representer, "representer", [[representer.RepresenterSettings()]]),
        every(trak, "trak", [[trak.TrakSettings(damping=d) for d in DAMPINGS]]),
        every(
            logra, "logra",
            [[logra.LograSettings(rank=32, init=init, damping=d) for d in dampings]
             for init, dampings in sides],
        ),
        every(less, "less", [[less.LessSettings(epsilon=x)] for x in (1e-2, 1e-1, 1.0)]),
        every(
            trackstar, "trackstar",
            [[trackstar.TrackstarSettings(mix=mix, optimizer=own) for mix in (0.0, 0.5, 0.9)]
             for own in (True, False)],
        ),
        every(ekfac, "ekfac", [[e(damping=d) for d in DAMPINGS]]),
        every(ekfac, "ev-shampoo", [[e(damping=d, eigenbasis="shampoo") for d in DAMPINGS]]),
        every(gauss_newton, "gauss-newton", [[n(damping=d) for d in solved]]),
        every(gauss_newton, "astra", [[n(damping=d, solver="astra") for d in solved]]),
    ]  # fmt: skip


def _source(checkpoints: int) -> Method:
    """Segments as in the paper, or one; and shorter and longer trainings than there was."""
    grid = [
        [source.SourceSettings(segments, horizon) for horizon in (0.1, 1.0, 10.0)]
        for segments in sorted({1, min(3, checkpoints)})
    ]
    return Method("source", source.fit, source.score, grid)


def _of_activations(names: Sequence[str], is_text: bool) -> list[Method]:
    c, k = simple.CosineSettings, knn_shapley.KnnShapleySettings
    chance = [[simple.RandomSettings()]]
    cosine, score = simple.fit_cosine, simple.score_cosine
    own = [
        Method("random", simple.fit_random, simple.score_random, chance, False),
        Method("feature-cosine", cosine, score, [[c(tap)] for tap in names], False),
        Method("pas", cosine, score, [[c(whitened=d)] for d in DAMPINGS], False),
    ]
    if is_text:
        rising = [[c(tap, rising=True)] for tap in names]
        return [*own, Method("rds+", cosine, score, rising, False)]
    votes = [[k(neighbours=count) for count in (3, 5, 10, 20, 50, 100)]]
    return [*own, Method("knn-shapley", knn_shapley.fit, knn_shapley.score, votes, False)]


def _of_texts(encoder: EncoderSettings | None) -> list[Method]:
    words = [[text.TfidfSettings(n)] for n in (1, 2, 3)]
    counts = [[text.Bm25Settings(k1=k1)] for k1 in (0.5, 1.5, 3.0)]
    weights = [
        [text.DsirSettings(ngrams, smoothing=share) for share in (0.01, 0.1, 1.0)]
        for ngrams in (1, 2)
    ]
    own = [
        Method("tf-idf", text.fit_tfidf, text.score_tfidf, words, False),
        Method("bm25", text.fit_bm25, text.score_bm25, counts, False),
        Method("dsir", text.fit_dsir, text.score_dsir, weights, False),
    ]
    if encoder is None:
        return own
    return [*own, Method("encoder", encoders.fit, encoders.score, [[encoder]], False)]
