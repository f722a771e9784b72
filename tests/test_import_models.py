"""Runs that start from pre-trained models: formats, refusals, what their products depend on.

Logits are compared with transformers' in the slow tests, here and in test_gpt.
"""

import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from stride_jax import models
from stride_jax.data.tokens import load_tokenizer, train_tokenizer
from stride_jax.models import WeightsError
from stride_jax.models.huggingface_config import huggingface_settings
from stride_jax.models.transformer import RopeScaling
from stride_jax.run import summary
from stride_jax.run.config_file import load_module
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import ForeignWorkdirError, check_workdir, run_settings
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.files import plain

ROOT = pathlib.Path(__file__).parents[1]
VOCAB, PADDED = 300, 304
CONFIG = {
    "model_type": "qwen3", "vocab_size": PADDED, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "rope_theta": 1e4, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
}  # fmt: skip


def text():
    """Sentences enough for a few dozen sequences of sixteen tokens."""
    rng = np.random.default_rng(0)
    words = "the a red blue old young cat dog house tree sees likes paints and of under"
    return [" ".join(rng.choice(words.split(), 12)) + "." for _ in range(160)]


def tensors(config, seed=0):
    """Random arrays under the names that transformers gives them, from the format's description."""
    rng = np.random.default_rng(seed)
    width, hidden, heads = (
        config[f"{n}"] for n in ("hidden_size", "intermediate_size", "head_dim")
    )
    q, kv = (config[f"num_{n}_heads"] * heads for n in ("attention", "key_value"))
    shapes = {
        "model.embed_tokens.weight": (config["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    for i in range(config["num_hidden_layers"]):
        layer = {
            "self_attn.q_proj": (q, width), "self_attn.k_proj": (kv, width),
            "self_attn.v_proj": (kv, width), "self_attn.o_proj": (width, q),
            "self_attn.q_norm": (heads,), "self_attn.k_norm": (heads,),
            "mlp.gate_proj": (hidden, width), "mlp.up_proj": (hidden, width),
            "mlp.down_proj": (width, hidden), "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }  # fmt: skip
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return {name: (0.3 * rng.normal(size=s)).astype(np.float32) for name, s in shapes.items()}


def write_model(folder, shards=1, **changes):
    """A Hugging Face folder: config, weights in one or several files, tokenizer."""
    folder.mkdir(parents=True)
    config = CONFIG | changes
    arrays = tensors(config)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    else:
        names, place = sorted(arrays), {}
        for i in range(shards):
            file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            own = {name: arrays[name] for name in names[i::shards]}
            safetensors.numpy.save_file(own, folder / file)
            place |= dict.fromkeys(own, file)
        index = {"metadata": {}, "weight_map": place}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    train_tokenizer(text(), VOCAB).save(folder / "tokenizer.json")
    return arrays


def config_of(tmp_path, **sections):
    """A config of a run over the sentences, small in every way."""
    file = tmp_path / "text.txt"
    if not file.exists():
        file.write_text("\n\n".join(text()))
    return {
        "text": {
            "name": "files", "path": str(file), "separator": "\n\n", "length": 16, "num_query": 3,
            "num_calibration": 3, "max_train": 40,
        },
        "model": {"init_from": str(tmp_path / "model")},
        "index": {
            "design": {"num_subsets": 16, "degree": 4, "kind": "hash"},
            "basis": {"rank": 8}, "taps": ("final",), "output_rank": 8, "kept": 0,
        },
        "read": {"exact": {"budget": 10, "rounds": 1}},
    } | sections  # fmt: skip


def test_a_run_from_a_folder_uses_its_weights_and_tokenizer(tmp_path):
    """End to end as it is; keys follow the content; the folder may move, and go."""
    arrays = write_model(tmp_path / "model", shards=3)
    settings = run_settings(config_of(tmp_path))
    assert settings.train.epochs == 0
    assert settings.num_checkpoints == 1
    assert (settings.model.kind, settings.model.llama.depth) == ("llama", 2)
    check_workdir(tmp_path / "run", settings)
    run = Run(settings, tmp_path / "run")
    summary.write(run)
    assert (tmp_path / "run" / "attribution.parquet").exists()
    assert run.module.num_classes == PADDED
    params = run.model.params
    np.testing.assert_array_equal(
        params["block1"]["down"]["kernel"], arrays["model.layers.1.mlp.down_proj.weight"].T
    )
    np.testing.assert_array_equal(params["embed"]["embedding"], arrays["model.embed_tokens.weight"])
    theirs = load_tokenizer(tmp_path / "model" / "tokenizer.json")
    tokens = next(row for row in run.train.inputs if theirs.bos_id in row[:8])
    mark = np.flatnonzero(tokens == theirs.bos_id)[0]  # whole sentences follow
    said = theirs.decode(tokens[mark:])
    assert any(sentence.startswith(said[:8]) for sentence in text())

    (tmp_path / "model").rename(tmp_path / "moved")
    moved = run_settings(config_of(tmp_path, model={"init_from": str(tmp_path / "moved")}))
    check_workdir(tmp_path / "run", moved)  # the path alone is no other run
    again = Run(moved, tmp_path / "run")
    for stage in ("data", "model", "operators", "recovery"):
        assert again.products.key(stage) == run.products.key(stage)
    shutil.rmtree(tmp_path / "moved")
    np.testing.assert_array_equal(again.text.train.inputs_NxT, run.text.train.inputs_NxT)
    np.testing.assert_array_equal(again.measurements, run.measurements)

    write_model(tmp_path / "model", rms_norm_eps=1e-5)
    other = run_settings(config_of(tmp_path))
    assert Run(other, tmp_path / "run").products.key("model") != run.products.key("model")
    with pytest.raises(ForeignWorkdirError, match=r"model\.origin\.digest"):
        check_workdir(tmp_path / "run", other)


@pytest.mark.eight
def test_fine_tuning_starts_from_the_weights_and_an_earlier_run_is_a_source(tmp_path):
    arrays = write_model(tmp_path / "model")
    still = {"epochs": 1, "batch_size": 8, "learning_rate": 0.0}
    run = Run(run_settings(config_of(tmp_path, train=still)), tmp_path / "still")
    assert len(run.model.checkpoints) == 1
    np.testing.assert_array_equal(
        run.model.params["embed"]["embedding"], arrays["model.embed_tokens.weight"]
    )
    learning = still | {"learning_rate": 0.05}
    bank = {"num_subsets": 2, "num_seeds": 1, "models_at_once": 2}
    config = config_of(tmp_path, train=learning, num_checkpoints=2, bank=bank)
    tuned = Run(run_settings(config), tmp_path / "tuned")
    assert len(tuned.model.checkpoints) == 2
    moved = np.abs(tuned.model.params["embed"]["embedding"] - arrays["model.embed_tokens.weight"])
    assert 0 < moved.max() < 0.3, "it moved, not far"

    frozen = Run(run_settings(config | {"train": still}), tmp_path / "tuned")
    losses_MxExQ = frozen.bank.losses_MxExQ
    np.testing.assert_allclose(losses_MxExQ[0], losses_MxExQ[1], rtol=1e-5)
    assert np.abs(tuned.bank.losses_MxExQ - losses_MxExQ).max() > 1e-3

    check_workdir(tmp_path / "tuned", tuned.settings)
    split = {"mesh": {"parameters": "sharded"}}
    for source in (tmp_path / "tuned", tuned.products.path("model")):
        config = config_of(tmp_path, model={"init_from": str(source)}, execution=split)
        settings = run_settings(config)
        assert settings.model.llama == tuned.settings.model.llama
        child = Run(settings, tmp_path / f"child-{source.name}")
        np.testing.assert_array_equal(child.text.train.inputs_NxT, tuned.text.train.inputs_NxT)
        jax.tree.map(np.testing.assert_array_equal, child.model.params, tuned.model.params)
        kernel = child.model.params["block0"]["gate"]["kernel"]
        assert kernel.addressable_data(0).size == kernel.size // 8


@pytest.mark.eight
def test_devices_read_their_own_part_in_the_dtype_asked_for(tmp_path, monkeypatch):
    """Half precision on disk and in memory, over eight devices: no device holds a whole matrix."""
    arrays = write_model(tmp_path / "model", head_dim=8)
    half = {name: v.astype(jax.numpy.bfloat16) for name, v in arrays.items()}
    safetensors.numpy.save_file(half, tmp_path / "model" / "model.safetensors")
    opened = models.open_huggingface(tmp_path / "model")
    mesh = meshes.arranged((2, 4), jax.devices())
    shapes = models.param_shapes(opened.settings, opened.num_classes)
    rule = meshes.sharded_parameters(shapes, mesh)
    sizes = []
    whole = type(opened.tensors["model.norm.weight"]).__getitem__
    monkeypatch.setattr(
        type(opened.tensors["model.norm.weight"]),
        "__getitem__",
        lambda self, at: [part := whole(self, at), sizes.append(part.size)][0],
    )
    params = opened.load(rule, jax.numpy.bfloat16)
    kernel = params["block0"]["gate"]["kernel"]
    assert kernel.sharding == rule["block0"]["gate"]["kernel"]
    assert kernel.addressable_data(0).size == kernel.size // 8
    assert max(sizes) == PADDED * 16 // 8, "the largest read is a device's part of the largest"
    for path, v in jax.tree_util.tree_leaves_with_path(params):
        assert v.dtype == jax.numpy.bfloat16, path
    np.testing.assert_array_equal(kernel, half["model.layers.0.mlp.gate_proj.weight"].T)
    one = opened.load(NamedSharding(mesh, P()))
    np.testing.assert_array_equal(one["final_norm"]["scale"], half["model.norm.weight"])


def test_settings_given_besides_must_agree(tmp_path):
    write_model(tmp_path / "model")

    def made(model, **sections):
        model = {"init_from": str(tmp_path / "model")} | model
        return run_settings(config_of(tmp_path, model=model, **sections))

    agreed = made({"kind": "llama", "llama": {"depth": 2, "dtype": "bfloat16", "sequence_len": 32}})
    assert (agreed.model.llama.dtype, agreed.model.llama.sequence_len) == ("bfloat16", 32)
    again = json.loads(json.dumps(plain(agreed)))
    assert run_settings(again) == agreed, "a run's settings are a config"
    for model, words in [
        ({"kind": "gpt"}, r"model.kind='gpt', but 'llama' there"),
        ({"llama": {"depth": 4}}, r"model.llama.depth=4, but 2 there"),
        ({"gpt": {"depth": 3}}, r"model.gpt.depth=3, but 4 there"),
        ({"llama": {"sequence_len": 65}}, r"sequence_len=65 exceeds.*max_position_embeddings=64"),
        ({"origin": {"format": "huggingface", "digest": "0", "num_classes": PADDED}},
         r"model.origin.digest='0'"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=words):
            made(model)
    for sections, words in [
        ({"num_checkpoints": 3}, r"num_checkpoints=3 of a model that is used as it is"),
        ({"bank": {"num_subsets": 4}}, r"bank retrains models.*used as it is"),
        ({"text": None, "verses": {}}, r"verses train a tokenizer of their own"),
    ]:
        with pytest.raises(ValueError, match=words):
            made({}, **sections)
    with pytest.raises(ValueError, match=r"train.epochs=0 trains nothing: give model.init_from"):
        run_settings({"train": {"epochs": 0}})


def test_what_does_not_fit_is_refused_before_anything_is_loaded(tmp_path):
    folder = tmp_path / "model"

    def refused(words, **sections):
        with pytest.raises(ValueError, match=words) as told:
            run_settings(config_of(tmp_path, **sections))
        assert isinstance(told.value, WeightsError)
        assert not (tmp_path / "run").exists()
        shutil.rmtree(folder, ignore_errors=True)

    refused(r"model is no folder: .*hf download")
    folder.mkdir()
    (folder / "notes.txt").write_text("nothing")
    refused(r"holds no weights that are read: give a Hugging Face folder")
    write_model(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))
    refused(r"shapes differ: .*gate_proj.weight is \(16, 24\) there, \(16, 32\) here")
    write_model(folder, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(r"lacks model-00002-of-00003.safetensors: copy the missing weights too")
    write_model(folder, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    (folder / "model.safetensors.index.json").unlink()
    refused(r"lacks model-00002-of-00003.safetensors")
    write_model(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(r"weights pickled \(pytorch_model.bin\).*never read.*save_pretrained")
    write_model(folder)
    (folder / "tokenizer.json").unlink()
    refused(r"has no tokenizer.json: give text.tokenizer.*AutoTokenizer")
    write_model(folder)
    train_tokenizer(text(), 312).save(folder / "tokenizer.json")
    refused(r"has 312 token ids, but the model in .* has 304")
    write_model(folder, vocab_size=500)
    refused(r"has 300 token ids, but the model in .* has 500")
    write_model(folder)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-10])
    refused(r"model.safetensors can't be read as safetensors")
    write_model(folder)
    arrays = {name: v.astype(np.int8) for name, v in tensors(CONFIG).items()}
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    refused(r"no plain floats .*I8.*quantised")


SIZES = {k: v for k, v in CONFIG.items() if k not in ("model_type", "head_dim")}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32, "rope_type": "llama3"}


def test_configs_become_settings_or_are_refused_by_name():
    def made(kind, **changes):
        return huggingface_settings(SIZES | {"model_type": kind} | changes)

    assert (made("qwen2").qkv_bias, made("qwen3").qk_norm, made("llama").qkv_bias) == (
        True,
        True,
        False,
    )
    assert made("llama", head_dim=10).head_width == 10
    assert made("qwen3").head_width == 128, "transformers' default"
    assert made("mistral", sliding_window=8).window == 7, "theirs counts the token itself"
    assert made("mistral", sliding_window=None).window == 0
    scaled = RopeScaling(8.0, 1.0, 4.0, 32)
    assert made("llama", rope_scaling=LLAMA3).rope_scaling == scaled
    new = made("llama", rope_theta=None, rope_parameters=LLAMA3 | {"rope_theta": 5e5})
    assert (new.rope_scaling, new.rope_theta) == (scaled, 5e5)
    for kind, name, value in [
        ("mixtral", "model_type", "mixtral"),
        ("llama", "hidden_act", "gelu"),
        ("llama", "attention_bias", True),
        ("llama", "mlp_bias", True),
        ("llama", "num_local_experts", 8),
        ("llama", "quantization_config", {"bits": 4}),
        ("llama", "partial_rotary_factor", 0.5),
        ("llama", "sliding_window", 8),
        ("llama", "logit_scale", 0.1),
        ("qwen2", "use_sliding_window", True),
        ("qwen3", "layer_types", ["full_attention", "sliding_attention"]),
        ("llama", "rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("llama", "rope_scaling", {"type": "linear", "factor": 2.0}),
        ("llama", "rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
    ]:
        with pytest.raises(WeightsError, match=rf"config.json has {name}=.*our models are plain"):
            made(kind, **{name: value})
    with pytest.raises(WeightsError, match=r"llama3 rotary positions lack \['factor'\]"):
        made("llama", rope_scaling={k: v for k, v in LLAMA3.items() if k != "factor"})


def test_nanochats_softcap_that_weights_do_not_show_is_told(tmp_path):
    torch = pytest.importorskip("torch")
    from tests import torch_gpt

    config = {"sequence_len": 16, "vocab_size": 64, "n_layer": 2, "n_embd": 64, "n_head": 4}
    config |= {"n_kv_head": 2}
    state = torch_gpt.random_state(config, smear=False, backout=False, gate_channels=32)
    torch_gpt.save(tmp_path, 3, config, state)
    with pytest.warns(UserWarning, match=r"softcap=15 is assumed.*2 to 9 March 2026"):
        models.open_nanochat(tmp_path)
    opened = models.open_nanochat(tmp_path, softcap=20.0)
    assert opened.settings.gpt.rope_rounded
    assert torch.equal(torch.tensor(opened.load()["head"]["kernel"]).T, state["lm_head.weight"])


@pytest.mark.slow
def test_the_ten_lines_of_the_documentation_run(tmp_path):
    """The config in docs/own_model.md, with its two folders in place."""
    (block,) = re.findall(r"```python\n(.+?)```", (ROOT / "docs/own_model.md").read_text(), re.S)
    assert sum(bool(line.strip()) for line in block.splitlines()) <= 12
    write_model(tmp_path / "model", max_position_embeddings=128)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "all.txt").write_text("\n".join(text() * 40))
    for name in ("text", "model"):
        block = block.replace(f'"my_{name}"', repr(str(tmp_path / name)))
    (tmp_path / "config.py").write_text(block)
    config = load_module(str(tmp_path / "config.py")).get_config()
    run = Run(run_settings(config), tmp_path / "run")
    result = summary.write(run, until="attribution")
    assert result["recovery"]["max_relative_gap"] < 0.1
    assert (tmp_path / "run" / "attribution.parquet").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3", "Llama", "Mistral"])
def test_logits_are_those_of_transformers(kind, tmp_path):
    """Random weights; sequences longer than the window and the unstretched context."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from benchmarks import imports

    changes = imports.KINDS[kind]
    assert imports.difference(kind, changes, tmp_path) <= 2e-5
    found = models.open_huggingface(tmp_path).settings.llama
    marks = {
        "Qwen2": found.qkv_bias,
        "Qwen3": found.qk_norm and found.tied_head and found.head_width == 6,
        "Llama": found.rope_scaling is not None and found.num_kv_heads == 1,
        "Mistral": found.window == 4 and found.head_width == 16,
    }
    assert marks[kind], "the model that was compared has what sets its kind apart"
