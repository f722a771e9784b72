"""One flipped bit is told, wherever it lies; how an array lies on devices changes no checksum."""

import json
import pathlib
import shutil
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stride_jax.data.source import DataSettings, load_splits
from stride_jax.runtime import checkpoint, digests, machine, npz, tables
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.files import UnreadableFileError, read_arrays, write_arrays
from stride_jax.runtime.tables import read_table, write_table

RNG = np.random.default_rng(0)
TREE = {
    "w": RNG.normal(size=(40, 7)).astype(np.float32),
    "half": jnp.asarray(RNG.normal(size=33), jnp.bfloat16),
    "rows": np.arange(9, dtype=np.int32),
    "mask": np.array([True, False]),
}
CONFIG = {"temperature": 1.25, "names": ["a", "b"], "seconds": 3.5}


@pytest.mark.parametrize("name", TREE)
def test_a_checksum_changes_with_any_bit_and_not_with_the_layout(name):
    array = np.asarray(TREE[name])
    known, hashed = digests.described(array), digests.hashed(array)
    for place in range(array.size):
        for bit in RNG.choice(8 * array.itemsize, 2) if array.dtype != bool else [0]:
            other = array.copy()
            raw = other.reshape(-1).view(f"u{array.itemsize}")
            raw[place] ^= raw.dtype.type(1 << int(bit))
            assert digests.described(other) != known
            assert digests.hashed(other) != hashed
    assert digests.described(jnp.asarray(array)) == known
    spread = int(digests._spread_checksum(jnp.asarray(array)))
    assert digests.described(array).endswith(str(spread))
    if array.ndim == 2:
        mesh = meshes.mesh_for(8)
        placed = meshes.place(array, meshes.over_subsets(mesh))
        assert (digests.described(placed), digests.hashed(placed)) == (known, hashed)
        assert digests.described(np.swapaxes(array, 0, 1)) != known
        assert digests.hashed(np.swapaxes(array, 0, 1)) != hashed


@pytest.mark.parametrize("size", [0, 1, 2**16 - 1, 2**16, 3 * 2**16 + 5])
@pytest.mark.parametrize("dtype", ["f4", "i8", "u1", "f2"])
def test_a_checksum_in_chunks_is_that_of_one_program(size, dtype):
    """The one that indexes and notes of earlier versions hold; jitted, it is summed at once."""
    array = RNG.integers(0, 256, size * np.dtype(dtype).itemsize, np.uint8).view(dtype)
    with jax.enable_x64(True):
        assert digests._checksum(array) == int(digests._spread_checksum(jnp.asarray(array)))


def flips(folder, count):
    """`(file, byte, bit)` spread evenly over all bytes of a folder's files."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    ends = np.cumsum([p.stat().st_size for p in files])
    for at in np.linspace(0, ends[-1] - 1, count).astype(int):
        i = int(np.searchsorted(ends, at, side="right"))
        yield files[i], int(at - (ends[i - 1] if i else 0)), int(RNG.integers(8))


def flipped(path, byte, bit):
    raw = bytearray(path.read_bytes())
    raw[byte] ^= 1 << bit
    path.write_bytes(raw)


def flip_a_checkpoint(home):
    """Print how many of 80 flips are told; all others read as it was written."""
    checkpoint.save(home / "whole", TREE, CONFIG)
    like = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), TREE)
    wanted = digests.by_path(TREE)
    told = 0
    for path, byte, bit in list(flips(home / "whole", 80)):
        shutil.copytree(home / "whole", home / "bad")
        flipped(home / "bad" / path.relative_to(home / "whole"), byte, bit)
        try:
            tree, config = checkpoint.restore(home / "bad", like)
        except checkpoint.CheckpointError as error:
            told += str(home / "bad") in str(error)
        else:
            assert (digests.by_path(tree), config) == (wanted, CONFIG), path
        shutil.rmtree(home / "bad")
    print(told)


def test_a_flipped_checkpoint_is_refused_or_reads_as_it_was_written(tmp_path):
    # In a process of its own: orbax leaves coroutines behind where a read fails.
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 20


def test_a_checkpoint_of_before_digests_is_read_with_a_warning(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_enveloped", lambda tree, config: config)
        checkpoint.save(tmp_path / "old", TREE, CONFIG)
    with pytest.warns(UserWarning, match="by an earlier version, without checksums"):
        tree, config = checkpoint.restore(tmp_path / "old", TREE)
    assert (digests.by_path(tree), config) == (digests.by_path(TREE), CONFIG)


def test_a_checkpoint_with_sums_as_several_processes_write_it_is_checked(tmp_path, monkeypatch):
    """And as earlier versions wrote it: no hashes of whole arrays, which nobody holds."""
    sums = {path: digests.described(leaf) for path, leaf in digests._leaves(TREE).items()}
    with monkeypatch.context() as patch:
        patch.setattr(digests, "by_path", lambda tree: sums)
        checkpoint.save(tmp_path / "good", TREE, CONFIG)
        checkpoint.save(tmp_path / "bad", TREE | {"rows": TREE["rows"] + 1}, CONFIG)
    tree, config = checkpoint.restore(tmp_path / "good", TREE)
    assert (digests.by_path(tree), config) == (digests.by_path(TREE), CONFIG)
    with pytest.raises(checkpoint.CheckpointError, match=r"1 of 4 arrays differ, first \['rows'\]"):
        checkpoint.restore(tmp_path / "bad", TREE)


def test_another_checkpoints_arrays_are_told(tmp_path):
    """A file that is whole, but of another save: the settings' checksums are of the first."""
    other = TREE | {"w": TREE["w"] + 1}
    for name, tree in (("a", TREE), ("b", other)):
        checkpoint.save(tmp_path / name, tree, CONFIG)
    shutil.rmtree(tmp_path / "a" / "0" / "params")
    shutil.copytree(tmp_path / "b" / "0" / "params", tmp_path / "a" / "0" / "params")
    with pytest.raises(checkpoint.CheckpointError, match=r"1 of 4 arrays differ, first \['w'\]"):
        checkpoint.restore(tmp_path / "a", TREE)


def test_a_flipped_table_is_refused_or_reads_as_it_was_written(tmp_path):
    columns = {
        "query_id": np.repeat(["qa", "qb"], 40),
        "train_id": np.array([f"t{i:03d}" for i in range(80)]),
        "score": RNG.normal(size=80).astype(np.float32),
        "rank": np.arange(80),
    }
    note = {"versions": {"x": "1"}, "query_ids": ["qa", "qb"], "settings": {"a": 0.5}}
    path = tmp_path / "table.parquet"
    write_table(path, columns, note)
    whole, told = path.read_bytes(), 0
    for at in np.unique(np.linspace(0, len(whole) - 1, 400).astype(int)):
        flipped(path, int(at), int(RNG.integers(8)))
        try:
            found, said = read_table(path)
        except UnreadableFileError as error:
            told += str(path) in str(error)
        else:
            # A note under a damaged name is not ours any more, and Attribution.load refuses it.
            assert said in (note, None), json.dumps(said)
            if said is not None:
                for name, column in columns.items():
                    np.testing.assert_array_equal(found[name].astype(column.dtype), column)
        path.write_bytes(whole)
    assert told > 200


def test_a_tables_digest_is_of_values_and_not_of_chunks(tmp_path):
    """Every value counts, also none and where a string ends; older digests are still compared."""
    columns = {
        "name": pa.array(["a", "bc", None, "", "d"] * 3),
        "long": pa.array(["a", "bc", "", "", "d"] * 3, pa.large_string()),
        "score": pa.array(RNG.normal(size=15).astype(np.float32)),
        "rank": pa.array([1, None, 3, 4, 5] * 3),
        "exact": pa.array([True, False, True, False, True] * 3),
    }
    table, note = pa.table(columns), {"a": 1}
    known = tables._digest(table, note)
    for chunks in (1, 2, 4):
        cut = [table.slice(i, chunks) for i in range(0, 15, chunks)]
        assert tables._digest(pa.concat_tables(cut), note) == known
    changes = {
        "name": pa.array(["ab", "c", None, "", "d"] * 3),
        "long": pa.array(["a", "b", "c", "", "d"] * 3, pa.large_string()),
        "score": pa.array(RNG.normal(size=15).astype(np.float32)),
        "rank": pa.array([1, 0, 3, 4, 5] * 3),
        "exact": pa.array([True, True, True, False, True] * 3),
    }
    for name, values in changes.items():
        assert tables._digest(pa.table(columns | {name: values}), note) != known
    assert tables._digest(table, {"a": 2}) != known
    assert (
        tables._digest(table.rename_columns(["n", "long", "score", "rank", "exact"]), note) != known
    )
    with pytest.raises(ValueError, match="only numbers and strings are stored"):
        tables._digest(pa.table({"a": [[1], [2]]}), note)
    for name, made in (("new", tables._digest), ("old", tables._older_digest)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tables, "_digest", made)
            write_table(tmp_path / name, {"a": np.arange(3), "b": np.array(["x", "yz", ""])}, note)
        assert read_table(tmp_path / name)[1] == note
        meta = pq.read_schema(tmp_path / name).metadata
        other = pa.table({"a": np.arange(3), "b": np.array(["xy", "z", ""])})
        pq.write_table(other.replace_schema_metadata(meta), tmp_path / name)
        with pytest.raises(UnreadableFileError, match="digest of its content differs"):
            read_table(tmp_path / name)


ARRAYS = {
    "scalar": np.array(2.5),
    "none": np.zeros((0, 3), np.float32),
    "rows": RNG.normal(size=(40, 7)).astype(np.float32),
    "columns": np.asfortranarray(RNG.normal(size=(5, 6))),
    "half": np.asarray(TREE["half"]).view("V2"),
    "ids": np.array(["t1", "täß", ""]),
    "mask": RNG.random(9) < 0.5,
    "every": np.arange(40, dtype=">i4")[::3],
}


@pytest.mark.parametrize("chunk", [64, npz._CHUNK])
def test_a_flipped_npz_is_refused_or_reads_as_it_was_written(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(npz, "_CHUNK", chunk)
    path, told = tmp_path / "a.npz", 0
    known = write_arrays(path, **ARRAYS)

    def same(found):
        assert found.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)

    same(read_arrays(path, known))
    with np.load(path) as file:  # NumPy reads it as any other
        same(dict(file))
    whole = path.read_bytes()
    for at in np.unique(np.linspace(0, len(whole) - 1, 700).astype(int)):
        flipped(path, int(at), int(RNG.integers(8)))
        try:
            found = read_arrays(path)
        except UnreadableFileError as error:
            told += str(path) in str(error)
        else:
            same(found)
        path.write_bytes(whole)
    assert told > 300
    for size in np.linspace(0, len(whole) - 1, 60).astype(int):
        path.write_bytes(whole[:size])
        with pytest.raises(UnreadableFileError, match=r"a\.npz can't be read as arrays"):
            read_arrays(path)


def edited(path, change):
    """A zip file of the same comment and of valid checksums, with its members changed."""
    with zipfile.ZipFile(path) as file:
        members, comment = {i.filename: file.read(i) for i in file.infolist()}, file.comment
    with zipfile.ZipFile(path, "w") as file:
        for name, content in change(members).items():
            file.writestr(name, content)
        file.comment = comment


@pytest.mark.parametrize(
    "change",
    [
        lambda own: {"a.npy": own["b.npy"], "b.npy": own["a.npy"]},
        lambda own: {"b.npy": own["a.npy"], "a.npy": own["b.npy"]},
        lambda own: {"a.npy": own["a.npy"], "c.npy": own["b.npy"]},
        lambda own: {"a.npy": own["a.npy"]},
        lambda own: own | {"c.npy": own["a.npy"]},
        lambda own: own | {"a.npy": own["a.npy"].replace(b"<f4", b"<i4")},
        lambda own: own | {"a.npy": own["a.npy"].replace(b"(3, 4)", b"(4, 3)")},
        lambda own: own | {"a.npy": own["a.npy"].replace(b"False", b"True ")},
    ],
)
def test_names_types_and_shapes_in_an_npz_are_in_its_digest(tmp_path, change):
    """What zip's checksums hold for whole."""
    path = tmp_path / "a.npz"
    arrays = {"a": np.ones((3, 4), np.float32), "b": np.zeros((3, 4), np.float32)}
    write_arrays(path, **arrays)
    edited(path, lambda own: own)
    np.testing.assert_array_equal(read_arrays(path)["a"], arrays["a"])
    edited(path, change)
    with pytest.raises(UnreadableFileError, match="it is not what was written: the digest"):
        read_arrays(path)


def test_an_npz_without_a_digest_is_read_and_checked_by_zip(tmp_path):
    path, array = tmp_path / "old.npz", np.arange(1000.0)
    np.savez(path, a=array)
    np.testing.assert_array_equal(read_arrays(path)["a"], array)
    with pytest.raises(UnreadableFileError, match="it is another file: its digest is None"):
        read_arrays(path, npz.digest({"a": array}))
    flipped(path, 5000, 3)
    with pytest.raises(UnreadableFileError, match=r"old\.npz can't be read as arrays"):
        read_arrays(path)


def test_foreign_weights_that_are_damaged_are_named(tmp_path):
    """JSON that is none, or of something else, and weights that are none: the file is named."""
    from stride_jax.models import read_huggingface, read_nanochat

    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 40)
    for text, words in [
        (b"{", "config.json can't be read as JSON"),
        (b"\xff\xfe", "config.json can't be read as JSON"),
        (b"[1]", "config.json holds no object"),
        (b'{"model_type": "llama"}', r"config.json lacks \['vocab_size'\]"),
        (b'{"model_type": "llama", "vocab_size": 9}', "lacks .*hidden_size"),
    ]:
        (tmp_path / "config.json").write_bytes(text)
        with pytest.raises(UnreadableFileError, match=words):
            read_huggingface(tmp_path)
    sizes = {
        "num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "rms_norm_eps": 1e-6,
        "num_attention_heads": 1, "max_position_embeddings": 8,
    }  # fmt: skip
    config = {"model_type": "llama", "vocab_size": 9} | sizes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnreadableFileError, match=r"a\.safetensors can't be read as safetensors"):
        read_huggingface(tmp_path)
    (tmp_path / "model_000001.pt").write_bytes(b"junk")
    for text, words in [("[]", "holds no object"), ('{"model_config": 3}', "is no object")]:
        (tmp_path / "meta_000001.json").write_text(text)
        with pytest.raises(UnreadableFileError, match=f"meta_000001.json {words}"):
            read_nanochat(tmp_path)


def test_small_files_that_stand_for_much_are_refused_before_they_are_read(tmp_path):
    np.savez_compressed(tmp_path / "packed.npz", a=np.zeros(10**6))
    with pytest.raises(UnreadableFileError, match=r"would unpack to 8000\d* bytes from"):
        read_arrays(tmp_path / "packed.npz")
    header = (
        b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (%d,)}"
    )
    claim = (header % 2**44).ljust(127) + b"\n"  # 128 TiB
    with zipfile.ZipFile(tmp_path / "claims.npz", "w") as file:
        file.writestr("a.npy", claim + b"\0" * 64)
    with pytest.raises(UnreadableFileError, match=r"claims.npz can't be read as arrays"):
        read_arrays(tmp_path / "claims.npz")
    for name, value in (("object", np.array([{}], dtype=object)),):
        np.savez(tmp_path / f"{name}.npz", a=value)
        with pytest.raises(UnreadableFileError, match="allow_pickle"):
            read_arrays(tmp_path / f"{name}.npz")
    rows = pa.RecordBatch.from_pydict({"a": pa.repeat(1.5, 10**6)})
    with pq.ParquetWriter(tmp_path / "many.parquet", rows.schema) as file:
        file.write_batch(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "memory_bytes", lambda: 10**7)
        with pytest.raises(UnreadableFileError, match="1000000 rows would take over"):
            read_table(tmp_path / "many.parquet")
    assert len(read_table(tmp_path / "many.parquet")[0]["a"]) == 10**6


def test_a_text_that_stands_in_every_row_is_not_written_out(tmp_path):
    words = pa.DictionaryArray.from_arrays(np.zeros(500, np.int32), ["a" * 10**6])
    pq.write_table(pa.table({"a": words}), tmp_path / "a.parquet", store_schema=False)
    with pytest.raises(UnreadableFileError, match=r"its column 'a' would take 0.5 GiB"):
        read_table(tmp_path / "a.parquet")
    pq.write_table(pa.table({"a": [[1, 2]]}), tmp_path / "b.parquet")
    with pytest.raises(UnreadableFileError, match="its column 'a' holds lists"):
        read_table(tmp_path / "b.parquet")
    columns = {"a": np.array(["x", "", "ü", "x"] * 3), "b": np.arange(12.0)}
    write_table(tmp_path / "c.parquet", columns, {"n": 1})
    found, note = read_table(tmp_path / "c.parquet")
    assert {name: list(v) for name, v in found.items()} == {n: list(v) for n, v in columns.items()}
    assert note == {"n": 1}


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "huggingface:x", "a/..", "a/data_dir=x,b=1"])
def test_names_of_datasets_lead_nowhere_else(tmp_path, name):
    with pytest.raises(ValueError, match="communities' code is not fetched"):
        load_splits(DataSettings(name), tmp_path)


def test_a_prepared_dataset_imports_nothing_of_others(tmp_path):
    home = tmp_path / "foo" / "1.0.0"
    home.mkdir(parents=True)
    (home / "features.json").write_text(json.dumps({"a": [{"pythonClassName": "evil.Feature"}]}))
    with pytest.raises(UnreadableFileError, match=r"features.json .*would import 'evil.Feature'"):
        load_splits(DataSettings("foo"), tmp_path)


if __name__ == "__main__":
    flip_a_checkpoint(pathlib.Path(sys.argv[1]))
