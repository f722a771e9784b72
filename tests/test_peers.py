"""Our baselines against other people's code: dattri, and traker by TRAK's authors.

The same weights, digits and projections, so that only the implementations differ. Needs the extra
`peers` (`make test-slow`). Torch is imported inside, so that `make test` collects without it, and
runs in float64: the reference adds no rounding of its own.
"""

import collections
from typing import Any, NamedTuple

import numpy as np
import pytest

from stride_jax.baselines import gradients, logra, trak
from stride_jax.baselines.model import Model
from stride_jax.baselines.projection import num_parameters, projection_matrix
from stride_jax.data import Examples
from stride_jax.evaluation.statistics import spearman_rows
from stride_jax.models import TrainSettings, pretrain

pytestmark = [
    pytest.mark.slow,
    # On import dattri compiles its LoGra; torch's compiler still uses what torch has deprecated.
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is dep:DeprecationWarning:torch"),
]

DAMPING = 0.1


class Peers(NamedTuple):
    """Three checkpoints of one MLP, 400 training and 60 query digits: ours, then torch's."""

    model: Model
    train: Examples
    query: Examples
    net: Any
    states: list[dict[str, Any]]
    train_loader: Any
    query_loader: Any


def torch_state(params):
    """Flax parameters as a torch state dict: a torch weight is the transposed kernel."""
    import torch

    named = {}
    for name, layer in params.items():
        named[f"{name}.weight"] = torch.tensor(np.array(layer["kernel"], np.float64).T)
        named[f"{name}.bias"] = torch.tensor(np.array(layer["bias"], np.float64))
    return named


def torch_mlp(params):
    """`Flatten, Linear, ReLU, …, Linear`, its layers named as flax names them."""
    import torch

    layers = collections.OrderedDict(flatten=torch.nn.Flatten())
    for name, layer in params.items():
        layers[name] = torch.nn.Linear(*layer["kernel"].shape, dtype=torch.float64)
        if name != "head":
            layers[f"{name}_relu"] = torch.nn.ReLU()
    net = torch.nn.Sequential(layers)
    net.load_state_dict(torch_state(params))
    return net.eval()


def torch_loader(examples):
    """The same examples in order; the last batch is smaller."""
    import torch

    # Rows of shape (1, 64): dattri's LoGra tries the net on one example without its batch axis.
    x = torch.tensor(np.array(examples.inputs, np.float64).reshape(len(examples), 1, -1))
    y = torch.tensor(np.array(examples.labels, np.int64))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=64)


@pytest.fixture(scope="module")
def peers(trained):
    module, train = trained.module, trained.train
    query = Examples(*(getattr(trained.query, f)[:60] for f in ("inputs", "labels", "ids")))
    recipe = TrainSettings(epochs=10, batch_size=32, learning_rate=0.1)
    checkpoints, rates = pretrain(module, train.inputs, train.labels, recipe, 3)
    model = Model(module, tuple(checkpoints), tuple(rates))
    net, states = torch_mlp(model.params), [torch_state(params) for params in checkpoints]
    loaders = torch_loader(train), torch_loader(query)
    theirs = np.concatenate([net(x).detach().numpy() for x, _ in loaders[1]])
    np.testing.assert_allclose(model.logits(model.params, query.inputs), theirs, atol=1e-4)
    return Peers(model, train, query, net, states, *loaders)


def assert_agree(ours_QxN, theirs_NxQ, label, scale=1.0):
    """Every query ranks the training set alike; with a scale, values agree to 1 % of the largest.

    Not closer: p − 1 of a well fitted example has few float32 digits, and a cosine keeps its error.
    """
    theirs_QxN = np.asarray(theirs_NxQ).T
    rho_Q = spearman_rows(ours_QxN, theirs_QxN)
    print(f"{label}: per-query Spearman min {rho_Q.min():.5f}, mean {rho_Q.mean():.5f}")
    assert rho_Q.shape == (60,)
    assert rho_Q.min() >= 0.99, f"{label}: lowest per-query Spearman {rho_Q.min():.4f}"
    if scale is not None:
        atol = 0.01 * scale * np.abs(theirs_QxN).max()
        np.testing.assert_allclose(ours_QxN, scale * theirs_QxN, rtol=0, atol=atol)


def log_probability(net, params, example):
    """Of the true class, for one example, in the form dattri differentiates."""
    import torch

    logits = torch.func.functional_call(net, params, example[0][None])
    return -torch.nn.functional.cross_entropy(logits, example[1][None])


@pytest.mark.parametrize("cosine", [False, True], ids=["dot", "cosine"])
@pytest.mark.parametrize("all_checkpoints", [False, True], ids=["last", "tracin"])
def test_gradient_similarity_is_dattris(peers, cosine, all_checkpoints):
    import torch
    from dattri.algorithm import TracInAttributor
    from dattri.task import AttributionTask

    settings = gradients.GradientSettings(cosine, all_checkpoints, batch_size=150)
    ours = gradients.score(None, peers.model, peers.train, peers.query, settings)
    loss = lambda params, example: -log_probability(peers.net, params, example)  # noqa: E731
    reference = TracInAttributor(
        AttributionTask(loss, peers.net, peers.states if all_checkpoints else peers.states[-1]),
        weight_list=torch.tensor(peers.model.learning_rates if all_checkpoints else (1.0,)),
        normalized_grad=cosine,
        projector_kwargs={"proj_type": "identity"},
    )
    theirs = reference.attribute(peers.train_loader, peers.query_loader)
    assert_agree(ours, theirs, f"gradients {cosine=} {all_checkpoints=}")


def our_trak(peers, num_checkpoints):
    """Our scores, and our projection for a peer, `[P, k]` a checkpoint.

    Rows go from our order (a layer's inputs, then its bias, by outputs) to torch's (outputs by
    inputs, then the bias). TRAK's kernel does not change when φ² and lambda grow together, and both
    peers take an absolute lambda and divide gradients by √P: scaling each checkpoint's matrix to a
    Gram matrix of mean eigenvalue one makes their lambda our relative one.
    """
    import torch

    settings = trak.TrakSettings(256, DAMPING, num_checkpoints, batch_size=150)
    state = trak.fit(peers.model, peers.train, settings)
    num = num_parameters(peers.model, peers.train.inputs)
    matrix_PxK = np.asarray(projection_matrix(num, settings.dim, settings.seed), np.float64)
    rows, start = [], 0
    for layer in peers.model.params.values():
        inputs, outputs = layer["kernel"].shape
        part = matrix_PxK[start : (start := start + (inputs + 1) * outputs)]
        part = part.reshape(inputs + 1, outputs, -1)
        rows += [part[:-1].swapaxes(0, 1).reshape(inputs * outputs, -1), part[-1]]
    eigenvalues = [np.square(phi, dtype=np.float64).sum() / settings.dim for phi in state["phi"]]
    matrices = [torch.tensor(np.concatenate(rows) * (num / e) ** 0.5) for e in eigenvalues]
    return trak.score(state, peers.model, peers.train, peers.query, settings), matrices


@pytest.mark.parametrize("num_checkpoints", [1, 3])
def test_trak_is_dattris(peers, num_checkpoints, monkeypatch):
    import torch
    from dattri.algorithm import TRAKAttributor
    from dattri.task import AttributionTask

    def log_odds(params, example):
        log_p = log_probability(peers.net, params, example)
        return log_p - torch.log(-torch.expm1(log_p))

    ours, matrices = our_trak(peers, num_checkpoints)
    monkeypatch.setattr(
        "dattri.algorithm.trak.random_project",
        lambda *args, **kwargs: lambda grads, ensemble_id: grads @ matrices[ensemble_id],
    )
    reference = TRAKAttributor(
        AttributionTask(log_odds, peers.net, peers.states[-num_checkpoints:]),
        lambda params, example: torch.exp(log_probability(peers.net, params, example)),
        regularization=DAMPING,
    )
    reference.cache(peers.train_loader)
    theirs = reference.attribute(peers.query_loader)
    assert_agree(ours, theirs, f"TRAK against dattri, {num_checkpoints=}")


def test_trak_is_its_authors(peers, tmp_path):
    """One checkpoint: traker divides each by its inverse's mean size, so only ranks compare."""
    import torch
    from trak import TRAKer
    from trak.projectors import NoOpProjector

    ours, [matrix_PxK] = our_trak(peers, 1)

    class Ours(NoOpProjector):
        def project(self, grads, model_id):
            return torch.cat([g.flatten(1) for g in grads.values()], dim=1) @ matrix_PxK

    reference = TRAKer(
        peers.net, "image_classification", len(peers.train), str(tmp_path), device="cpu",
        projector=Ours(*matrix_PxK.shape), lambda_reg=DAMPING,
        use_half_precision=False, logging_level="WARNING",
    )  # fmt: skip
    reference.load_checkpoint(peers.states[-1], model_id=0)
    for batch in peers.train_loader:
        reference.featurize(batch, num_samples=len(batch[1]))
    reference.finalize_features()
    reference.start_scoring_checkpoint("query", peers.states[-1], 0, len(peers.query))
    for batch in peers.query_loader:
        reference.score(batch, num_samples=len(batch[1]))
    assert_agree(ours, reference.finalize_scores("query"), "TRAK against traker", scale=None)


@pytest.mark.parametrize(("init", "blocks"), [("random", True), ("pca", True), ("pca", False)])
def test_logra_is_dattris(peers, init, blocks, tmp_path):
    """dattri's damping is relative to the mean eigenvalue of each layer's Gram matrix, as ours.

    It has no inverse over all layers together: there, its projected gradients and torch's solver.
    """
    import torch
    from dattri.algorithm import LoGraAttributor
    from dattri.task import AttributionTask

    def mean_loss(net, batch, device):
        return torch.nn.functional.cross_entropy(net(batch[0]), batch[1])

    settings = logra.LograSettings(8, init, DAMPING, blocks, batch_size=150)
    state = logra.fit(peers.model, peers.train, settings)
    ours = logra.score(state, peers.model, peers.train, peers.query, settings)
    reference = LoGraAttributor(
        AttributionTask(mean_loss, peers.net, peers.states[-1]),
        damping=DAMPING, proj_dim=settings.rank**2, offload="none", cache_dir=str(tmp_path),
    )  # fmt: skip
    reference._setup_compressors(peers.train_loader)
    for name, compressor in zip(reference.layer_names, reference.compressors, strict=True):
        compressor.sparsifier.sparsifier_comp = tuple(
            lambda x, ensemble_id, m=torch.tensor(np.array(side, np.float64)): x @ m
            for side in reversed(state["sides"][name])  # theirs: errors, then inputs
        )
    with torch.compiler.set_stance("force_eager"):  # compiling takes longer than running
        reference.cache(peers.train_loader)
        theirs = reference.attribute(peers.train_loader, peers.query_loader)
        scale = 1 / len(peers.train)  # their Gram matrix is a mean
        if not blocks:
            loaders = (peers.train_loader, peers.query_loader)
            phi, own = (reference._compute_test_gradients(each)[0] for each in loaders)
            gram = phi.T @ phi
            ridge = DAMPING * gram.trace() / len(gram) * torch.eye(len(gram))
            theirs, scale = phi @ torch.linalg.solve(gram + ridge, own.T), 1.0
    assert_agree(ours, theirs, f"LoGRA {init=} {blocks=}", scale)
