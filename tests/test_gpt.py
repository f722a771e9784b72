"""Language models: shapes, causality, taps, trees of foreign weights; peers in torch (slow)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import nanochat
from stride_jax.adapters import from_model
from stride_jax.models import (
    GPTSettings,
    LlamaSettings,
    ModelSettings,
    TrainSettings,
    WeightsError,
    fit,
    make_model,
    param_shapes,
    read_huggingface,
    read_nanochat,
)
from stride_jax.models.attention import causal_attention
from stride_jax.models.import_huggingface import huggingface_settings
from stride_jax.models.import_nanochat import nanochat_settings
from stride_jax.models.importing import fill
from stride_jax.runtime import checkpoint
from stride_jax.runtime.settings import build
from stride_jax.settings import IndexSettings

VOCAB = 50
SMALL = GPTSettings(
    depth=2, width=32, num_heads=4, num_kv_heads=2, sequence_len=16, window_pattern="SL"
)
MODELS = {
    "gpt": ModelSettings("gpt", gpt=SMALL),
    "llama": ModelSettings(
        "llama", llama=LlamaSettings(2, 32, 48, num_heads=4, sequence_len=16, init_std=0.2)
    ),
}
HIDDEN = {"gpt": 4 * 32, "llama": 48}
TOKENS_BxT = np.random.default_rng(0).integers(0, VOCAB, (2, 12)).astype(np.int32)


def random_params(settings, seed=0):
    """Normal weights in place of zero-initialised projections, so that every part matters."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda v: 0.3 * rng.normal(size=v.shape).astype(np.float32), param_shapes(settings, VOCAB)
    )


@functools.cache
def tapped(settings):
    return from_model(make_model(settings, VOCAB))


@pytest.mark.parametrize(
    ("depth", "published"), [(12, 286e6), (16, 537e6), (20, 897e6), (24, 1.38e9)]
)
def test_published_sizes(depth, published):
    config = nanochat.get_config(f"d{depth}")
    settings = build(ModelSettings, config.model.to_dict())
    count = sum(leaf.size for leaf in jax.tree.leaves(param_shapes(settings, 32_768)))
    width, heads = 64 * depth, depth // 2
    tables = 32_768 * width * (2 + depth // 2)  # embedding, head, values of every second layer
    layers = 12 * depth * width**2 + depth // 2 * 12 * heads  # matrices, gates
    scalars = 2 * depth + 24 + 2
    assert count == tables + layers + scalars
    assert abs(count - published) <= (5e6 if depth == 24 else 5e5)  # as it is rounded
    site = build(IndexSettings, config.index.to_dict()).sites[0]
    assert int(site.removeprefix("block")) < depth


@pytest.mark.parametrize("kind", MODELS)
def test_later_tokens_change_nothing_before(kind):
    model, params = tapped(MODELS[kind]), random_params(MODELS[kind])
    logits = np.asarray(model(params, TOKENS_BxT)[0])
    changed = TOKENS_BxT.copy()
    changed[:, 7:] = (changed[:, 7:] + 1) % VOCAB
    other = np.asarray(model(params, changed)[0])
    np.testing.assert_array_equal(other[:, :7], logits[:, :7])
    assert (np.abs(other[:, 7:] - logits[:, 7:]).max(axis=-1) > 1e-3).all()
    padded = np.pad(TOKENS_BxT, ((0, 0), (0, 4)))
    np.testing.assert_allclose(model(params, padded)[0][:, :12], logits, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_models_at_once_are_those_alone(kind):
    module = make_model(MODELS[kind], VOCAB)
    each = [random_params(MODELS[kind], seed) for seed in range(3)]
    together = jax.tree.map(lambda *v: jnp.stack(v), *each)
    run = lambda p: module.apply({"params": p}, jnp.asarray(TOKENS_BxT))[0]  # noqa: E731
    logits = jax.jit(jax.vmap(run))(together)
    for i, params in enumerate(each):
        np.testing.assert_allclose(
            logits[i], tapped(MODELS[kind])(params, TOKENS_BxT)[0], atol=2e-5
        )


@pytest.mark.parametrize("kind", MODELS)
def test_any_tap_put_back_gives_the_same_logits(kind):
    model, params = tapped(MODELS[kind]), random_params(MODELS[kind])
    logits, seen = model(params, TOKENS_BxT)
    layers = {"norm0", "up0", "norm1", "up1", *(("gate0", "gate1") if kind == "llama" else ())}
    assert set(seen) == layers | {
        "embedding", "previous", "block0", "block1", "final", "mlp0", "mlp1"
    }  # fmt: skip
    assert set(model.layers) == layers, "no basis reads them unasked"
    inner = {name for name in seen if name.startswith(("mlp", "up", "gate"))}
    assert {seen[name].shape for name in set(seen) - inner} == {(2, 12, 32)}
    assert {seen[name].shape for name in inner} == {(2, 12, HIDDEN[kind])}
    np.testing.assert_array_equal(seen["previous"][:, 1:], seen["embedding"][:, :-1])
    assert (seen["previous"][:, 0] == 0).all()
    assert model.suffix is not None
    for name in set(seen) - {"previous"}:
        again = model.suffix(params, TOKENS_BxT, {name: seen[name]})
        # Two programs round differently, in proportion to the largest logits.
        np.testing.assert_allclose(again, logits, atol=5e-6 * float(np.abs(logits).max()))
        moved = model.suffix(params, TOKENS_BxT, {name: seen[name][:, ::-1]})
        assert np.abs(moved - logits).max() > 0.1
    with pytest.raises(ValueError, match="unknown tap 'block9'"):
        model.suffix(params, TOKENS_BxT, {"block9": seen["block0"]})


def test_attention_is_a_loop_over_heads():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 9, h, 4)).astype(np.float32) for h in (6, 2, 2))
    run = jax.jit(causal_attention, static_argnums=(3, 4))
    for window in (None, 3):
        want = np.zeros((2, 9, 6, 4))
        for t in range(9):
            past = slice(0 if window is None else max(t - window, 0), t + 1)
            for head in range(6):
                scores = np.einsum("be,bse->bs", q[:, t, head], k[:, past, head // 3]) / 2
                weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
                want[:, t, head] = np.einsum("bs,bse->be", weights, v[:, past, head // 3])
        for implementation in ("einsum", "xla"):
            got = run(q, k, v, window, implementation)
            np.testing.assert_allclose(got, want.reshape(2, 9, 24), atol=2e-6)


def test_a_fresh_gpt_is_uniform_and_learns():
    settings = ModelSettings("gpt", gpt=dataclasses.replace(SMALL, depth=1))
    module = make_model(settings, VOCAB)
    tokens = jnp.tile(jnp.arange(17, dtype=jnp.int32), (8, 1))
    params = jax.jit(module.init)(jax.random.key(0), tokens[:, :-1])["params"]
    forward = lambda p, x: module.apply({"params": p}, x)[0]  # noqa: E731
    fresh = jax.jit(forward)(params, tokens[:, :-1])
    assert np.abs(fresh).max() < 0.1  # head of standard deviation .001
    assert (np.asarray(params["block0"]["attention"]["out"]["kernel"]) == 0).all()
    assert 0.9 < np.std(params["block0"]["attention"]["query"]["kernel"]) * 32**0.5 < 1.1
    settings = TrainSettings(epochs=20, batch_size=8, optimizer="adamw", learning_rate=0.01)
    run = jax.jit(fit, static_argnames=("forward", "settings"))
    params = run(
        forward, params, tokens[:, :-1], tokens[:, 1:], jnp.arange(8), jax.random.key(1), settings
    )
    logits = jax.jit(forward)(params, tokens[:, :-1])
    assert (logits.argmax(axis=-1) == tokens[:, 1:]).mean() > 0.9


def test_bfloat16_keeps_float32_parameters_and_logits():
    low = ModelSettings("gpt", gpt=dataclasses.replace(SMALL, dtype="bfloat16"))
    assert {v.dtype for v in jax.tree.leaves(param_shapes(low, VOCAB))} == {np.dtype("float32")}
    params = random_params(MODELS["gpt"])
    logits, seen = tapped(low)(params, TOKENS_BxT)
    assert (logits.dtype, seen["final"].dtype) == (jnp.float32, jnp.bfloat16)
    exact = tapped(MODELS["gpt"])(params, TOKENS_BxT)[0]
    assert np.corrcoef(np.ravel(logits), np.ravel(exact))[0, 1] > 0.99


@pytest.mark.slow
def test_recomputed_blocks_have_the_same_gradient():
    params = random_params(MODELS["gpt"])

    def loss(params, remat):
        settings = dataclasses.replace(SMALL, remat=remat)
        module = make_model(ModelSettings("gpt", gpt=settings), VOCAB)
        logits, _ = module.apply({"params": params}, jnp.asarray(TOKENS_BxT))
        return jax.nn.log_softmax(logits)[..., 0].mean()

    gradient = jax.jit(jax.grad(loss), static_argnames="remat")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6),
        gradient(params, remat=False),
        gradient(params, remat=True),
    )


def test_bad_sizes_and_tokens_are_refused():
    for changes, message in (
        ({"width": 30}, "width=30 must be a multiple"),
        ({"num_kv_heads": 3}, "positive multiple of num_kv_heads=3"),
        ({"num_heads": 32, "num_kv_heads": 32}, "a head's width is 1"),
        ({"window_pattern": "SXL"}, "window_pattern='SXL'"),
        ({"smear_channels": 64}, "smear_channels=64"),
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"attention": "flash"}, "attention='flash'"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(SMALL, **changes)
    module = make_model(MODELS["gpt"], VOCAB)
    with pytest.raises(ValueError, match="17 tokens, but the model's context is sequence_len=16"):
        module.init(jax.random.key(0), jnp.zeros((1, 17), jnp.int32))
    with pytest.raises(ValueError, match=r"integer tokens \[B, T\], not float32\[1, 4\]"):
        module.init(jax.random.key(0), jnp.zeros((1, 4)))


def test_foreign_weights_must_fit_exactly():
    shapes = {"a": {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32)}, "b": {"bias": np.ones(2)}}
    name = ".".join
    tensors = {"a.kernel": np.arange(6.0).reshape(3, 2), "b.bias": np.ones(2)}
    tree = fill(shapes, tensors, name, "hint")
    np.testing.assert_array_equal(tree["a"]["kernel"], tensors["a.kernel"].T)
    with pytest.raises(WeightsError, match=r"missing.*\['b.bias'\]; 1 are unknown.*\['c'\]; hint"):
        fill(shapes, {"a.kernel": tensors["a.kernel"], "c": np.ones(1)}, name, "hint")
    with pytest.raises(WeightsError, match=r"a.kernel is \(3, 2\) there, \(2, 3\) here; hint"):
        fill(shapes, tensors | {"a.kernel": np.ones((2, 3))}, name, "hint")


def test_nanochats_versions_are_told_by_their_weights():
    config = {"sequence_len": 2048, "vocab_size": 100, "n_layer": 2, "n_head": 2, "n_kv_head": 2}
    config["n_embd"] = 64
    gate = "transformer.h.1.attn.ve_gate.weight"
    oldest = nanochat_settings(config, {})
    assert (oldest.residual_scalars, oldest.value_embeddings, oldest.smear) == (False,) * 3
    assert (oldest.window_pattern, oldest.rope_theta, oldest.qk_scale) == ("L", 1e4, 1.0)
    january = nanochat_settings(config, {gate: np.ones((2, 32)), "resid_lambdas": np.ones(2)})
    assert (january.short_window, january.value_gate_scale) == (1024, 2.0)
    assert (january.value_gate_channels, january.residual_scalars) == (32, True)
    march = nanochat_settings(config | {"window_pattern": "sl"}, {gate: np.ones((2, 12))})
    assert (march.short_window, march.qk_scale, march.window_pattern) == (768, 1.15, "SL")
    smear = {gate: np.ones((2, 12)), "smear_gate.weight": np.ones((1, 24))}
    latest = nanochat_settings(config, smear, softcap=20.0)
    assert (latest.short_window, latest.qk_scale, latest.softcap) == (512, 1.2, 20.0)
    with pytest.raises(WeightsError, match=r"lacks \['n_layer'\].*unknown keys \['dropout'\]"):
        nanochat_settings({k: v for k, v in config.items() if k != "n_layer"} | {"dropout": 0}, {})


def test_configs_our_llama_lacks_are_refused(tmp_path):
    config = {
        "model_type": "qwen2", "num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 16,
        "num_attention_heads": 2, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
        "vocab_size": 20, "rope_theta": 5e5,
    }  # fmt: skip
    found = huggingface_settings(config, sequence_len=8)
    assert (found.num_kv_heads, found.qkv_bias, found.rope_theta, found.sequence_len) == (
        2, True, 5e5, 8,
    )  # fmt: skip
    for change in (
        {"model_type": "gemma"},
        {"use_sliding_window": True},
        {"rope_scaling": {"rope_type": "yarn"}},
        {"attention_bias": True},
    ):
        with pytest.raises(WeightsError, match=f"config.json has {next(iter(change))}="):
            huggingface_settings(config | change)
    with pytest.raises(WeightsError, match=r"lacks config.json or \*.safetensors"):
        read_huggingface(tmp_path)
    with pytest.raises(WeightsError, match=r"no model_<step>.pt of step 3.*there are \[\]"):
        read_nanochat(tmp_path, 3)


def assert_same_logits(imported, tokens, want, label):
    """Within 2e-4, of logits that are not small."""
    module = make_model(imported.settings, imported.num_classes)
    logits, _ = from_model(module)(imported.params, tokens)
    difference, size = np.abs(np.asarray(logits) - want).max(), np.abs(want).max()
    print(f"{label}: max difference {difference:.2e}, largest logit {size:.2f}")
    assert want.shape == (2, 12, imported.num_classes)
    assert size > 1
    assert difference <= 2e-4


def assert_kept(imported, folder):
    """Orbax gives back parameters and settings."""
    imported.save(folder)
    shapes = param_shapes(imported.settings, imported.num_classes)
    params, config = checkpoint.restore(folder, shapes)
    jax.tree.map(np.testing.assert_array_equal, params, imported.params)
    assert build(ModelSettings, config["model"]) == imported.settings
    assert config["num_classes"] == imported.num_classes


SWITCHES = {
    "latest": ({}, {}, {}),
    "half width of keys": ({"n_kv_head": 1}, {}, {}),
    "all heads": ({"n_kv_head": 4}, {}, {}),
    "one window": ({"window_pattern": "L"}, {}, {}),
    "short windows": ({"window_pattern": "SSL"}, {}, {}),
    "padded head": ({"vocab_size": 40}, {}, {}),
    "no values": ({}, {"values": False}, {}),
    "no scalars": ({}, {"scalars": False}, {}),
    "no smear": ({}, {"smear": False}, {"rope_theta": 1e5, "qk_scale": 1.2}),
    "no backout": ({}, {"backout": False}, {}),
    "no softcap": ({}, {}, {"softcap": 0.0}),
    "softcap 5": ({}, {}, {"softcap": 5.0}),
    "no norm of q and k": ({}, {}, {"qk_norm": False}),
    "January": (
        {"window_pattern": "SSSL"},
        {"smear": False, "backout": False, "gate_channels": 32},
        {"rope_theta": 1e4, "qk_scale": 1.0, "value_gate_scale": 2.0, "softcap": 15.0},
    ),
    "rounded tables": ({}, {}, {"rope_rounded": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("switch", SWITCHES)
def test_logits_are_those_of_nanochat_in_torch(switch, tmp_path):
    torch = pytest.importorskip("torch")
    from tests import torch_gpt

    changes, parts, overrides = SWITCHES[switch]
    config = {"sequence_len": 16, "vocab_size": VOCAB, "n_layer": 4, "n_embd": 64, "n_head": 4}
    config |= {"n_kv_head": 2, "window_pattern": "SL"} | changes
    state = torch_gpt.random_state(config, **parts)
    tokens = TOKENS_BxT % config["vocab_size"]
    torch_gpt.save(tmp_path, 7, config, state)
    overrides = {"short_window": 4, "rope_rounded": False} | overrides
    imported = read_nanochat(tmp_path, **overrides)
    ours = imported.settings.gpt
    features = torch_gpt.Features(
        ours.rope_theta,
        ours.qk_norm,
        ours.qk_scale,
        ours.value_gate_scale,
        4,
        ours.softcap,
        ours.rope_rounded,
    )
    want = torch_gpt.logits(state, torch.tensor(tokens, dtype=torch.int64), config, features)
    assert_same_logits(imported, tokens, want.numpy(), switch)
    assert_kept(imported, tmp_path / "orbax")
    del state["lm_head.weight"]
    torch_gpt.save(tmp_path, 8, config, state | {"transformer.h.0.extra": torch.ones(1)})
    with pytest.raises(WeightsError, match=r"\['lm_head.weight'\].*\['transformer.h.0.extra'\]"):
        read_nanochat(tmp_path, **overrides)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", ["Qwen2", "Llama"])
def test_logits_are_those_of_transformers(kind, tied, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
        initializer_range=0.3, tie_word_embeddings=tied, rope_theta=5e4, rms_norm_eps=1e-5,
    )  # fmt: skip
    torch.manual_seed(0)
    reference = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():  # biases and norms start as constants
            parameter.add_(0.1 * torch.randn_like(parameter))
        want = reference(torch.tensor(TOKENS_BxT, dtype=torch.int64)).logits.numpy()
    reference.save_pretrained(tmp_path)
    imported = read_huggingface(tmp_path)
    assert imported.settings.llama.tied_head == tied
    assert imported.settings.llama.rope_theta == 5e4
    assert_same_logits(imported, TOKENS_BxT, want, f"{kind} {tied=}")
    assert_kept(imported, tmp_path / "orbax")
    written = tmp_path / "config.json"
    written.write_text(
        written.read_text().replace('"num_hidden_layers": 3', '"num_hidden_layers": 4')
    )
    with pytest.raises(WeightsError, match=r"arrays are missing.*layers\.3\."):
        read_huggingface(tmp_path)
