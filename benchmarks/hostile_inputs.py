"""Crafted inputs for the readers and commands, each with what reads it."""

import json
import os
import pathlib
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import stride_jax
from stride_jax.cli.main import main
from stride_jax.data import map_splits, write_splits
from stride_jax.data.documents import read_documents
from stride_jax.data.source import DataSettings, load_splits
from stride_jax.data.text import TextSettings, load_text
from stride_jax.data.tokens import load_tokenizer
from stride_jax.data.truths import read_truth
from stride_jax.index import Index
from stride_jax.models.import_huggingface import read_huggingface
from stride_jax.models.import_nanochat import read_nanochat
from stride_jax.runtime import checkpoint
from stride_jax.runtime.claim import only_run
from stride_jax.runtime.files import read_arrays, read_json, write_arrays, write_json
from stride_jax.runtime.metrics import MetricsWriter
from stride_jax.runtime.tables import read_table

Read = Callable[[], Any]
Maker = Callable[[pathlib.Path], Read]
"""Writes an input into a folder, beside which lies `outside`; gives what reads it."""

HUGE = 2**44  # entries: 128 TiB of float64
DEEP = "[" * 10**5 + "]" * 10**5
LONG = "1" * 10**4


class Payload:
    """Pickled, it makes a file where it is loaded."""

    def __init__(self, marker: pathlib.Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def marker(folder: pathlib.Path) -> pathlib.Path:
    """The file that an executed payload makes."""
    return folder.parent / "executed"


# ── arrays ───────────────────────────────────────────────────────────────────────────────────────


def npy(shape: str, dtype: str = "'<f8'", content: bytes = b"\0" * 64) -> bytes:
    """A `.npy` file with any shape in its header."""
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def zipped(members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> Maker:
    """Any bytes as members of an `.npz`, read as an index's arrays."""

    def make(folder: pathlib.Path) -> Read:
        with zipfile.ZipFile(folder / "a.npz", "w", kind) as file:
            for name, content in members.items():
                file.writestr(name, content)
        return lambda: Index.load(folder / "a.npz")

    return make


def pickled(name: str, read: Callable[[pathlib.Path], Any], inside: str = "") -> Maker:
    """A pickle under a name of another kind, or in a zip file."""

    def make(folder: pathlib.Path) -> Read:
        path, content = folder / name, pickle.dumps(Payload(marker(folder)))
        path.parent.mkdir(exist_ok=True)
        if inside:
            with zipfile.ZipFile(path, "w") as file:
                file.writestr(inside, content)
        else:
            path.write_bytes(content)
        return lambda: read(path)

    return make


def objects(folder: pathlib.Path) -> Read:
    """An array of objects, one of which has a payload."""
    np.savez(folder / "a.npz", a=np.array([Payload(marker(folder))], object))
    return lambda: read_arrays(folder / "a.npz")


def overlapping(folder: pathlib.Path) -> Read:
    """A zip file whose members are all the same bytes."""
    path, count = folder / "a.npz", 2000
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.npy", npy("(131072,)", content=b"\0" * 2**20))
        first = file.filelist[0]
        for i in range(count):
            other = zipfile.ZipInfo(f"{i:05}")
            for field in ("CRC", "compress_size", "file_size", "header_offset"):
                setattr(other, field, getattr(first, field))
            file.filelist.append(other)
            file.NameToInfo[other.filename] = other
    return lambda: read_arrays(path)


def mapped(change: Callable[[pathlib.Path], Any]) -> Maker:
    """Splits on disk, one file of which is changed."""

    def make(folder: pathlib.Path) -> Read:
        rows = stride_jax.Examples(np.zeros((4, 2), np.float32), np.zeros(4, np.int32))
        write_splits(folder / "splits", {"train": rows}, 2)
        change(folder / "splits")
        return lambda: map_splits(folder / "splits")

    return make


def put(name: str, content: bytes) -> Callable[[pathlib.Path], Any]:
    """Writes a file into a folder."""
    return lambda folder: (folder / name).write_bytes(content)


ARRAYS: dict[str, Maker] = {
    "npz of objects": objects,
    "pickle as .npz": pickled("a.npz", Index.load),
    "pickle in a .npz": pickled("a.npz", Index.load, "a.npy"),
    "pickle as .npz of operators": pickled("a.npz", stride_jax.load_operators),
    "pickle as .npy of splits": mapped(lambda f: pickled("ids", str)(f) and (f / "ids").rename(
        f / "train-ids.npy")),
    "npz, deflated bomb": zipped(
        {"a.npy": npy("(67108864,)", content=bytes(2**29))}, zipfile.ZIP_DEFLATED),
    "npz, lzma bomb": zipped({"a.npy": npy("(8388608,)", content=bytes(2**26))}, zipfile.ZIP_LZMA),
    "npz of overlapping members": overlapping,
    "npz, 128 TiB": zipped({"a.npy": npy(f"({HUGE},)")}),
    "npz, 6 GiB": zipped({"a.npy": npy(f"({3 * 2**28},)")}),
    "npz, negative shape": zipped({"a.npy": npy("(-1,)")}),
    "npz, shape of 2^64": zipped({"a.npy": npy(f"({2**32}, {2**32})")}),
    "npz, shape beyond 64 bits": zipped({"a.npy": npy(f"({10**30},)")}),
    "npz, 10^12 entries of no size": zipped(
        {"train_ids.npy": npy(f"({10**12},)", "'<U0'", b"")}),
    "npz, header of code": zipped({"a.npy": npy("__import__('os').system('true')")}),
    "npz, header of 10^4 digits": zipped({"a.npy": npy(f"({LONG},)")}),
    "npz, header of brackets": zipped({"a.npy": npy("(" * 5000 + ")" * 5000)}),
    "npz, ../ in names": zipped({"../../outside/a.npy": npy("(8,)"), "/a.npy": npy("(8,)")}),
    "npz, format of a record": zipped({"a.npy": npy("(1,)", "[('a', 'O')]")}),
    "splits, 128 TiB": mapped(put("train-inputs.npy", npy(f"({HUGE},)"))),
    "splits, ids of 128 TiB": mapped(put("train-ids.npy", npy(f"({HUGE},)"))),
    "splits, negative shape": mapped(put("train-inputs.npy", npy("(-8,)"))),
    "splits, overflowing shape": mapped(put("train-inputs.npy", npy(f"({2**32}, {2**32})"))),
    "splits, ids of no size": mapped(put("train-ids.npy", npy(f"({10**12},)", "'<U0'", b""))),
    "splits, objects": mapped(put("train-ids.npy", npy("(1,)", "'|O'", pickle.dumps([0])))),
    "splits, a zip file": mapped(lambda f: np.savez(f / "x.npz", a=0) or (f / "x.npz").rename(
        f / "train-ids.npy")),
    "splits, ../ in roles": mapped(lambda f: write_json(
        f / "splits.json", {"num_classes": 2, "roles": ["../../outside/a"]})),
    "splits, absolute role": mapped(lambda f: write_json(
        f / "splits.json", {"num_classes": 2, "roles": ["/etc/passwd"]})),
    "splits, no roles": mapped(lambda f: write_json(f / "splits.json", [1])),
}  # fmt: skip


# ── tables and JSON ──────────────────────────────────────────────────────────────────────────────


def many_rows(read: Callable[[pathlib.Path], Any]) -> Maker:
    """A small Parquet file of 300 million rows."""

    def make(folder: pathlib.Path) -> Read:
        batch = pa.RecordBatch.from_pydict({"a": pa.repeat(1.5, 10**7)})
        with pq.ParquetWriter(folder / "a.parquet", batch.schema, compression="zstd") as file:
            for _ in range(30):
                file.write_batch(batch)
        return lambda: read(folder / "a.parquet")

    return make


def long_texts(read: Callable[[pathlib.Path], Any]) -> Maker:
    """A small Parquet file in which one long text stands in every row."""

    def make(folder: pathlib.Path) -> Read:
        words = pa.DictionaryArray.from_arrays(pa.repeat(0, 5000).cast(pa.int32()), ["a" * 10**6])
        table = pa.table({"text": words})
        with pq.ParquetWriter(
            folder / "a.parquet", table.schema, compression="zstd", store_schema=False,
            dictionary_pagesize_limit=2**30,
        ) as file:  # fmt: skip
            file.write_table(table)
        return lambda: read(folder / "a.parquet")

    return make


def nested(read: Callable[[pathlib.Path], Any]) -> Maker:
    """One row whose list has 300 million entries."""

    def make(folder: pathlib.Path) -> Read:
        values = pa.ListArray.from_arrays([0, 3 * 10**7], pa.repeat(1.5, 3 * 10**7))
        table = pa.table({"a": pa.concat_arrays([values] * 4), "text": ["a"] * 4})
        pq.write_table(table, folder / "a.parquet", compression="zstd", row_group_size=1)
        return lambda: read(folder / "a.parquet")

    return make


def extension(folder: pathlib.Path) -> Read:
    """A Parquet file whose column says that its type is a pickle."""
    meta = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Payload(marker(folder))),
    }
    field = pa.field("a", pa.int64(), metadata=meta)
    pq.write_table(pa.table([[1]], pa.schema([field])), folder / "a.parquet")
    return lambda: stride_jax.Attribution.load(folder / "a.parquet")


def text(name: str, content: str, read: Callable[[pathlib.Path], Any]) -> Maker:
    """A file of a name and content."""

    def make(folder: pathlib.Path) -> Read:
        (folder / name).write_text(content)
        return lambda: read(folder / name)

    return make


def linked(target: str, name: str, read: Callable[[pathlib.Path], Any]) -> Maker:
    """A link under a file's name."""

    def make(folder: pathlib.Path) -> Read:
        (folder / name).symlink_to(target)
        return lambda: read(folder / name)

    return make


def pipe(folder: pathlib.Path) -> Read:
    """A pipe into which nobody writes."""
    os.mkfifo(folder / "a.json")
    return lambda: read_json(folder / "a.json")


TABLES: dict[str, Maker] = {
    "pickle as .parquet": pickled("a.parquet", stride_jax.Attribution.load),
    "pickle as .json": pickled("a.json", read_json),
    "pickle as .jsonl": pickled("a.jsonl", read_documents),
    "pickle as tokenizer.json": pickled("a.json", load_tokenizer),
    "Parquet of 300 million rows": many_rows(read_table),
    "documents of 300 million rows": many_rows(lambda p: read_documents(p, text_column="a")),
    "Parquet, one text in all rows": long_texts(read_table),
    "documents, one text in all rows": long_texts(read_documents),
    "Parquet of long lists": nested(read_table),
    "Parquet, a pickled type": extension,
    "JSON, 10^5 brackets": text("a.json", DEEP, read_json),
    "JSON, 10^5 objects": text("a.json", '{"a":' * 10**5 + "1" + "}" * 10**5, read_json),
    "JSON, 10^4 digits": text("a.json", LONG, read_json),
    "documents, 10^5 brackets": text("a.jsonl", f'{{"text": {DEEP}}}', read_documents),
    "documents, 10^4 digits": text("a.jsonl", f'{{"text": "a", "n": {LONG}}}', read_documents),
    "documents, half a character": text("a.jsonl", '{"text": "\\ud800"}', read_documents),
    "documents, name of half a character": text(
        "a\udcff.txt", "some text", lambda p: load_text(
            TextSettings("files", path=str(p), vocab_size=300), p.parent)),
    "tokenizer, 10^5 brackets": text("a.json", DEEP, load_tokenizer),
    "tokenizer, wrong structure": text("a.json", '{"model": {"type": "BPE", "vocab": {"a": -1}}}',
                                       load_tokenizer),
    "truth, 10^5 brackets": text("a.json", DEEP, read_truth),
    "config, 10^5 brackets": text(
        "a.json", DEEP, lambda p: main(["check", f"--config={p}", f"--workdir={p.parent}/x"])),
    "JSON, a device without end": linked("/dev/zero", "a.json", read_json),
    "npz, a device without end": linked("/dev/zero", "a.npz", read_arrays),
    "Parquet, a device without end": linked("/dev/zero", "a.parquet", read_table),
    "documents, a device without end": linked("/dev/zero", "a.txt", lambda p: load_text(
        TextSettings("files", path=str(p)), p.parent)),
    "JSON, a pipe": pipe,
}  # fmt: skip


# ── weights ──────────────────────────────────────────────────────────────────────────────────────

CONFIG = {
    "model_type": "llama", "vocab_size": 64, "num_hidden_layers": 1, "hidden_size": 8,
    "intermediate_size": 16, "num_attention_heads": 2, "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5,
}  # fmt: skip


def weights(header: Any, size: int | None = None, content: bytes = b"", **config: Any) -> Maker:
    """A Hugging Face folder with any header of its safetensors file."""

    def make(folder: pathlib.Path) -> Read:
        (folder / "config.json").write_text(json.dumps(CONFIG | config))
        told = header.encode() if isinstance(header, str) else json.dumps(header).encode()
        length = struct.pack("<Q", len(told) if size is None else size)
        (folder / "model.safetensors").write_bytes(length + told + content)
        return lambda: read_huggingface(folder)

    return make


def tensor(dtype: str, shape: list[int], first: int, last: int) -> dict[str, Any]:
    """An entry of a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def by_index(folder: pathlib.Path) -> Read:
    """Weights whose index names files elsewhere, and none beside it."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    names = {"a": "../../outside/model.safetensors", "b": "/etc/passwd"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return lambda: read_huggingface(folder)


def pickled_weights(folder: pathlib.Path) -> Read:
    """A Hugging Face folder of pickles alone."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker(folder))))
    return lambda: read_huggingface(folder)


def nanochat(content: Callable[[pathlib.Path], bytes], **config: Any) -> Maker:
    """A nanochat folder with any `.pt`."""

    def make(folder: pathlib.Path) -> Read:
        sizes = {"sequence_len": 16, "n_layer": 1, "n_embd": 8, "n_head": 2, "n_kv_head": 2}
        meta = {"model_config": sizes | {"vocab_size": 64} | config}
        (folder / "meta_000001.json").write_text(json.dumps(meta))
        (folder / "model_000001.pt").write_bytes(content(folder))
        return lambda: read_nanochat(folder)

    return make


def _torch_zip(folder: pathlib.Path) -> bytes:
    path = folder / "made.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Payload(marker(folder))))
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
    return path.read_bytes()


def long_config(folder: pathlib.Path) -> Read:
    """Weights whose config holds a number of many digits."""
    read = weights({"a": tensor("F32", [1], 0, 4)}, content=bytes(4))(folder)
    (folder / "config.json").write_text(f'{{"model_type": {LONG}}}')
    return read


ONE = {"a": tensor("F32", [1], 0, 4)}
WEIGHTS: dict[str, Maker] = {
    "Hugging Face .bin": pickled_weights,
    "index of weights, ../": by_index,
    "safetensors, length 2^63": weights(ONE, 2**63),
    "safetensors, length 90 MB": weights(ONE, 9 * 10**7),
    "safetensors, 128 TiB": weights({"a": tensor("F32", [2**45], 0, 2**47)}),
    "safetensors, overlap": weights(
        {"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [2], 4, 12)}, content=bytes(12)),
    "safetensors, backwards": weights({"a": tensor("F32", [1], 4, 0)}, content=bytes(4)),
    "safetensors, shape of 2^64": weights(
        {"a": tensor("F32", [2**32, 2**32], 0, 4)}, content=bytes(4)),
    "safetensors, no dtype": weights({"a": tensor("X7", [1], 0, 4)}, content=bytes(4)),
    "safetensors, 8 bits": weights({"a": tensor("F8_E4M3", [4], 0, 4)}, content=bytes(4)),
    "safetensors, 10^5 brackets": weights(DEEP),
    "safetensors, ../ in names": weights(
        {"../../outside/a": tensor("F32", [1], 0, 4)}, content=bytes(4)),
    "operators, safetensors of any names": lambda folder: (
        weights({"a:b": tensor("F32", [1], 0, 4), "a:b:c": tensor("F32", [1], 4, 8)},
                content=bytes(8))(folder)
        and (lambda: stride_jax.load_operators(folder / "model.safetensors"))),
    "config of 10^9 layers": weights(ONE, content=bytes(4), num_hidden_layers=10**9),
    "config of 10^15 tokens": weights(ONE, content=bytes(4), vocab_size=10**15),
    "config of words": weights(ONE, content=bytes(4), rms_norm_eps="a", hidden_size=[]),
    "config, rope of numbers": weights(ONE, content=bytes(4), rope_parameters=5),
    "config of 10^4 digits": long_config,
    "nanochat .pt, pickle": nanochat(lambda f: pickle.dumps(Payload(marker(f)))),
    "nanochat .pt, zip of a pickle": nanochat(_torch_zip),
    "nanochat .pt, zip of others": nanochat(lambda f: b"PK\x05\x06" + bytes(18)),
    "nanochat of 10^9 layers": nanochat(lambda f: b"", n_layer=10**9),
}  # fmt: skip


# ── checkpoints ──────────────────────────────────────────────────────────────────────────────────


def saved(change: Callable[[pathlib.Path], Any], shapes: bool = False) -> Maker:
    """A checkpoint of orbax, changed."""

    def make(folder: pathlib.Path) -> Read:
        change(folder / "model")
        like = {"w": np.zeros(6, np.float32)}
        path = folder / "model"
        return lambda: checkpoint.shapes(path) if shapes else checkpoint.restore(path, like)

    return make


def metadata(value: dict[str, Any]) -> Callable[[pathlib.Path], Any]:
    """Other zarr metadata of the array `w`, in orbax's own store."""

    def change(folder: pathlib.Path) -> None:
        import tensorstore as ts

        spec = {"driver": "ocdbt", "base": f"file://{folder / '0/params'}/"}
        store = ts.KvStore.open(spec).result()
        own = json.loads(store.read("w/.zarray").result().value)
        store.write("w/.zarray", json.dumps(own | value).encode()).result()

    return change


def bomb(folder: pathlib.Path) -> None:
    """A chunk that unpacks to 4 GiB."""
    import tensorstore as ts

    spec = {"driver": "ocdbt", "base": f"file://{folder / '0/params'}/"}
    frame = pa.Codec("zstd").compress(bytes(2**26), asbytes=True)
    ts.KvStore.open(spec).result().write("w/0", frame * 64).result()


def everywhere(name: str, content: str) -> Callable[[pathlib.Path], Any]:
    """Other content in all files of a name."""

    def change(folder: pathlib.Path) -> None:
        found = list(folder.rglob(name))
        assert found, f"no {name} in a checkpoint"
        for path in found:
            path.write_text(content)

    return change


CHECKPOINTS: dict[str, Maker] = {
    "checkpoint, 128 TiB": saved(metadata({"shape": [HUGE], "chunks": [6]})),
    "checkpoint, 128 TiB, its shapes": saved(metadata({"shape": [HUGE], "chunks": [6]}), True),
    "checkpoint, 8 GiB, its shapes": saved(metadata({"shape": [2**31], "chunks": [6]}), True),
    "checkpoint, chunks of 128 TiB": saved(metadata({"chunks": [HUGE]})),
    "checkpoint, a chunk that unpacks to 4 GiB": saved(bomb),
    "checkpoint, negative shape": saved(metadata({"shape": [-1]})),
    "checkpoint, 10^5 brackets": saved(everywhere("_METADATA", DEEP)),
    "checkpoint, steps of 10^5 brackets": saved(everywhere("_CHECKPOINT_METADATA", DEEP)),
    "checkpoint, config of 10^5 brackets": saved(everywhere("metadata", DEEP)),
    "checkpoint, config of 10^4 digits": saved(everywhere("metadata", LONG)),
}


# ── folders of runs ──────────────────────────────────────────────────────────────────────────────


def verified(change: Callable[[pathlib.Path], Any], *more: str) -> Maker:
    """A finished run, changed; read by a command, `verify` by default."""

    def make(folder: pathlib.Path) -> Read:
        change(folder / "run")
        words = more or ("verify",)
        return lambda: main([*words, f"--workdir={folder / 'run'}"])

    return make


def setting(**values: Any) -> Callable[[pathlib.Path], Any]:
    """Other settings in a run's folder; dotted names with `__`."""

    def change(folder: pathlib.Path) -> None:
        told = read_json(folder / "settings.json")
        for name, value in values.items():
            *above, last = name.split("__")
            section = told
            for part in above:
                section = section[part]
            section[last] = value
        write_json(folder / "settings.json", told)

    return change


def arrays(stage: str, **values: Any) -> Callable[[pathlib.Path], Any]:
    """Other arrays in the product of a stage; None takes one out."""

    def change(folder: pathlib.Path) -> None:
        (path,) = (folder / stage).glob("*.npz")
        own = read_arrays(path) | values
        write_arrays(path, **{name: v for name, v in own.items() if v is not None})

    return change


def texts(**values: Any) -> Callable[[pathlib.Path], Any]:
    """Other content of the record of a run's texts."""

    def change(folder: pathlib.Path) -> None:
        (path,) = folder.glob("data/text-*/settings.json")
        write_json(path, read_json(path) | values)

    return change


def litter(folder: pathlib.Path) -> Read:
    """Litter that is links to files and folders elsewhere, and a folder that holds such."""
    outside = folder.parent / "outside"
    (folder / "incomplete.x").symlink_to(outside)
    (folder / ".a.abcdefgh.part").symlink_to(outside / "precious")
    (folder / "incomplete.y").mkdir()
    (folder / "incomplete.y" / "z").symlink_to(outside)
    (folder / "linked").symlink_to(outside)

    def work() -> None:
        with only_run(folder):
            left = {p.name for p in folder.iterdir()}
        assert left == {".running", "linked", "run"}, left

    return work


def through_link(name: str, work: Callable[[pathlib.Path], Any]) -> Maker:
    """A link to a file elsewhere where a run appends to one of its own."""

    def make(folder: pathlib.Path) -> Read:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(folder.parent / "outside" / "precious")
        return lambda: work(folder)

    return make


def _claimed(folder: pathlib.Path) -> None:
    with only_run(folder):
        pass


def _dataset(name: str) -> Maker:
    return lambda folder: lambda: load_splits(DataSettings(name), folder)


def features(folder: pathlib.Path) -> Read:
    """A prepared dataset whose features are of a class in a module beside it."""
    home = folder / "foo" / "1.0.0"
    home.mkdir(parents=True)
    told = {"name": "foo", "version": "1.0.0", "fileFormat": "array_record"}
    (home / "dataset_info.json").write_text(json.dumps(told))
    (home / "features.json").write_text(json.dumps({"pythonClassName": "evil.Feature"}))
    (folder / "evil.py").write_text(f"open({str(marker(folder))!r}, 'w')")

    def read() -> Any:
        import sys

        sys.path.insert(0, str(folder))
        return load_splits(DataSettings("foo"), folder)

    return read


def shadowed(folder: pathlib.Path) -> Read:
    """A module of a package's name in the folder that a command starts in."""
    for name in ("tqdm", "orbax", "evil"):
        (folder / f"{name}.py").write_text(f"open({str(marker(folder))!r}, 'w')")

    def read() -> Any:
        import importlib

        os.chdir(folder)
        code = main(["verify", "--workdir=nothing"])
        try:
            importlib.import_module("evil")
        except ModuleNotFoundError:
            return code
        return code

    return read


FOLDERS: dict[str, Maker] = {
    "litter of links": litter,
    "lock, a link": through_link(".running", _claimed),
    "metrics, a link": through_link("metrics/metrics.jsonl",
                                    lambda f: MetricsWriter(f / "metrics")),
    "dataset ../../x": _dataset("../../x"),
    "dataset /etc/passwd": _dataset("/etc/passwd"),
    "dataset of a community": _dataset("huggingface:x"),
    "dataset in another folder": _dataset("mnist/data_dir=..,x=1"),
    "dataset, config ..": _dataset("mnist/..:1.0.0"),
    "dataset, a class to import": features,
    "modules in the working folder": shadowed,
    "dataset by --config": lambda folder: lambda: main(
        ["check", "--config=configs/breast_cancer.py:runlocal", "--config.data.name=../../x",
         f"--workdir={folder / 'new'}"]),
    "settings, ../ as text": verified(setting(text__name="files", text__path="../../outside")),
    "settings, tokenizer elsewhere": verified(setting(text__tokenizer="/etc/passwd")),
    "settings, tokenizer without end": verified(setting(text__tokenizer="/dev/zero")),
    "settings, groups ../": verified(setting(groups="../../outside")),
    "settings, 10^9 layers": verified(setting(model__gpt__depth=10**9)),
    "settings, a stage's name": verified(setting(**{"../../outside": 1})),
    "settings, 10^5 brackets": verified(lambda f: (f / "settings.json").write_text(DEEP)),
    "settings, asked": verified(setting(text__tokenizer="../../outside/precious"),
                                "ask", "--prompt=And"),
    "texts, ../ in names": verified(texts(files={"../../../../outside/precious": "0" * 16})),
    "texts, no names": verified(texts(files=[1])),
    "summary, a device without end": verified(lambda f: (f / "summary.json").unlink() or (
        f / "summary.json").symlink_to("/dev/zero")),
    "summary of words": verified(lambda f: write_json(f / "summary.json", {"a": 1})),
    "measurements, none": verified(arrays("measurements", y=None)),
    "measurements, a note of others": verified(arrays("measurements", note="[")),
    "measurements, seconds in words": verified(arrays("measurements", seconds=np.array("a"))),
    "scores, places outside": verified(arrays("recovery", **{
        "exact:indices": np.full(50, 2**31 - 1, np.int32), "exact:data": np.ones(50, np.uint8),
        "exact:indptr": np.array([0] + [50] * 8, np.int32)})),
    "scores of 10^15 rows": verified(arrays("recovery", **{
        "scores:shape": np.array([10**15, 10**15])})),
    "verify --redo of a link": verified(lambda f: shutil.rmtree(f / "random") or (
        f / "random").symlink_to(f.parents[1] / "outside"), "verify", "--redo"),
}  # fmt: skip

INPUTS = {**ARRAYS, **TABLES, **WEIGHTS, **CHECKPOINTS, **FOLDERS}
