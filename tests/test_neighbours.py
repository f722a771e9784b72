"""Sources of candidates against scalar loops, near copies against all pairs, and both in a run."""

import dataclasses
import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import stride_jax
from configs import bible_gpt
from stride_jax import ExactSettings, Examples, ReadSettings, neighbours
from stride_jax.applications.answer import ask
from stride_jax.applications.inquiry import AskSettings
from stride_jax.candidates import as_one
from stride_jax.cli.ask import _parser
from stride_jax.near_copies import NearCopySettings, near_copy_keys
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import RunSettings, run_settings, used
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.rows import Taken
from stride_jax.sequences import token_lists
from stride_jax.settings import SOURCES


@pytest.fixture(scope="module")
def index(trained) -> stride_jax.Index:
    settings = stride_jax.IndexSettings(
        taps=("hidden1",), design=stride_jax.Design(40, 5, kind="hash"), kept=0
    )
    train = trained.train
    return stride_jax.fit(
        trained.tapped, trained.params, train.inputs, train.labels, settings, ids=train.ids
    )


def test_tokens_end_with_the_last_label_that_counts():
    inputs = [[5, 8, 9, 0, 0], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [1, 2, 3, 0, 0]]
    labels = [[-1, 9, 7, -1, -1], [2, 3, 4, 5, 6], [9, 0, 1, 0, 1], [-1, -1, -1, -1, 0]]
    weights = np.ones((4, 5))
    weights[1, 3:] = 0
    examples = Examples(inputs, labels, list("abcd"), weights)
    assert [own.tolist() for own in token_lists(examples, "bm25")] == [
        [5, 8, 9, 7],  # the completion's last token stands in the labels alone
        [1, 2, 3, 4],  # weights of 0 do not count
        [1, 2, 3, 4, 5],  # labels of another kind are no tokens
        [1, 2, 3, 0, 0, 0],
    ]


def test_words_of_rows_that_are_read_are_those_of_rows_in_memory(monkeypatch):
    rng = np.random.default_rng(0)
    inputs, ids = rng.integers(0, 9, (20, 6)), [str(i) for i in range(20)]
    labels = np.where(rng.random((20, 6)) < 0.3, -1, np.roll(inputs, -1, axis=1))
    order = np.arange(20)
    held = token_lists(Examples(inputs, labels, ids), "bm25")
    lazy = Examples.trusted(
        Taken(inputs, order), Taken(labels, order), np.array(ids)
    )  # as of shards
    read = token_lists(lazy, "bm25")
    assert [own.tolist() for own in read] == [own.tolist() for own in held]
    monkeypatch.setattr("stride_jax.sequences._MOST", 119)
    with pytest.raises(ValueError, match="bm25 would hold all 120 tokens of these shards"):
        token_lists(lazy, "bm25")


def _bm25(texts: list[list[int]], query: list[int]) -> list[float]:
    """Lucene's BM25, term by term."""
    length = sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        score = 0.0
        for word in query:
            have = sum(word in other for other in texts)
            rarity = math.log(1 + (len(texts) - have + 0.5) / (have + 0.5))
            times = text.count(word)
            score += rarity * times / (times + 1.5 * (0.25 + 0.75 * len(text) / length))
        scores.append(score)
    return scores


def test_bm25_is_its_formula_whatever_the_block():
    rng = np.random.default_rng(0)
    texts = [rng.zipf(1.5, size=rng.integers(1, 30)) % 50 for _ in range(60)]
    queries = [rng.zipf(1.5, size=8) % 60 for _ in range(7)] + [np.array([1000])]
    named = neighbours.bm25(texts, queries, 5)
    small = neighbours.bm25(texts, queries, 5, Execution(memory=2 * 16 * 60 * 3))
    np.testing.assert_array_equal(named.row_QxP, small.row_QxP)
    for query, rows in zip(queries, named.row_QxP, strict=True):
        scores = np.array(_bm25([own.tolist() for own in texts], query.tolist()))
        rows = rows[rows >= 0]
        # Ties may fall either way: the scores of those named are the largest there are.
        expected = np.sort(scores[scores > 0])[::-1][:5]
        np.testing.assert_allclose(np.sort(scores[rows])[::-1], expected, rtol=1e-5)
    assert (named.row_QxP[-1] == -1).all(), "no text shares a word"


def test_features_are_nearest_by_cosine(trained, index):
    train, query = trained.train, trained.query.take(np.arange(9))
    frozen = stride_jax.freeze(trained.tapped, trained.params, train, index.settings)
    order = np.random.default_rng(0).permutation(len(train))
    more = Examples(
        np.concatenate([query.inputs, train.inputs[order]]),
        np.concatenate([query.labels, train.labels[order]]),
        np.concatenate([[f"other {i}" for i in range(9)], train.ids[order]]),
    )
    (named,) = neighbours.finder(("features",), frozen, index, more)(query, 6)
    tap = {n: np.asarray(v) for n, v in trained.tapped(trained.params, train.inputs)[1].items()}
    own = {n: np.asarray(v) for n, v in trained.tapped(trained.params, query.inputs)[1].items()}
    basis = next(iter(index.operators.values())).basis
    mean, scale = np.asarray(basis.mean["hidden1"]), float(basis.scale["hidden1"])
    projection = np.asarray(basis.weights["projection"])
    a, b = ((v["hidden1"] - mean) / scale @ projection for v in (own, tap))
    for i, rows in enumerate(named.row_QxP):
        cosine = [x @ a[i] / np.linalg.norm(x) / np.linalg.norm(a[i]) for x in b]
        np.testing.assert_allclose(np.sort(np.array(cosine)[rows]), np.sort(cosine)[-6:], rtol=1e-4)


def test_sums_of_features_leave_out_tokens_that_do_not_count():
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(11, 4)), jnp.float32)
    model = stride_jax.from_function(lambda w, x: (w[x] @ w.T, {"embedding": w[x]}))
    inputs = rng.integers(0, 11, (30, 6))
    labels = np.where(rng.random((30, 6)) < 0.3, -1, rng.integers(0, 11, (30, 6)))
    train = Examples(inputs, labels)
    settings = stride_jax.IndexSettings(taps=("embedding",), design=stride_jax.Design(12, 3))
    index = stride_jax.fit(model, table, inputs, labels, settings)
    frozen = stride_jax.freeze(model, table, train, index.settings)
    basis = next(iter(index.operators.values())).basis
    whole = neighbours.feature_sums(frozen, basis, train)
    chunks = neighbours.feature_sums(frozen, basis, train, Execution(memory=4096))
    for row, (tokens, counts) in enumerate(zip(inputs, labels >= 0, strict=True)):
        x = (np.asarray(table)[tokens] - np.asarray(basis.mean["embedding"])) / float(
            basis.scale["embedding"]
        )
        expected = (x @ np.asarray(basis.weights["projection"]))[counts].sum(axis=0)
        np.testing.assert_allclose(whole[row], expected, atol=1e-4)
    np.testing.assert_allclose(whole, chunks, atol=1e-5)


def test_what_a_source_names_is_scored_exactly_within_its_share(trained, index):
    model, train = (trained.tapped, trained.params), trained.train
    query = trained.query.take(np.arange(5))
    read = ReadSettings(exact=ExactSettings(budget=40, sources=("features",)))
    found = stride_jax.attribute(
        *model, index, query.inputs, query.labels, read, ids=query.ids, train=train
    )
    direct = stride_jax.direct(*model, index, train, query).scores_QxN
    assert tuple(found.sources) == ("kept", "sketch", "features")
    bits_QxN = found.exact.toarray()
    assert ((bits_QxN & 4) > 0).sum(axis=1).tolist() == [10] * 5
    assert (bits_QxN > 0).sum(axis=1).tolist() == [40] * 5, "the sketch names the rest"
    exact = bits_QxN > 0
    np.testing.assert_allclose(found.scores_QxN[exact], direct[exact], atol=1e-5, rtol=1e-3)
    together = stride_jax.attribute(
        *model, index, query.inputs, query.labels, read, train=train, together="mean"
    )
    assert ((together.exact.toarray() & 4) > 0).sum() == 10


def test_bad_sources_are_refused_early(trained, index):
    model, train = (trained.tapped, trained.params), trained.train
    for wrong, message in (
        ({"sources": ("tfidf",)}, "name any of"),
        ({"sources": ("bm25", "bm25")}, "each once"),
        ({"sources": ("bm25",), "budget": 0}, "raise it, or leave sources out"),
    ):
        with pytest.raises(ValueError, match=message):
            ExactSettings(**wrong)
    words = ReadSettings(exact=ExactSettings(sources=("bm25",)))
    with pytest.raises(ValueError, match="bm25 reads tokens, but this run has no text"):
        RunSettings(read=words)
    with pytest.raises(ValueError, match="near_copies reads tokens"):
        RunSettings(near_copies=NearCopySettings())
    asked = (*model, index, train.inputs[:2], train.labels[:2])
    with pytest.raises(ValueError, match=r"token ids .* leave bm25 out for other data"):
        stride_jax.attribute(*asked, words, train=train)
    features = ReadSettings(exact=ExactSettings(sources=("features",)))
    with pytest.raises(ValueError, match="give train="):
        stride_jax.attribute(*asked, features)
    with pytest.raises(ValueError, match="give them another"):
        stride_jax.attribute(*asked, features, train=train, candidates={"features": train.ids[:1]})
    many = {f"source {i}": train.ids[:1] for i in range(6)}
    with pytest.raises(ValueError, match="7 sources of candidates: at most 6"):
        stride_jax.attribute(*asked, features, train=train, candidates=many)
    # A run without sources has the folder it had before there were any.
    assert "sources" not in used(RunSettings())["read"]["exact"]
    assert "near_copies" not in used(RunSettings())


# ── near copies ──────────────────────────────────────────────────────────────────────────────────


def _texts(rng: np.random.Generator) -> list[np.ndarray]:
    """Texts, copies of some with one to six tokens changed, and some copies of the copies."""
    texts = [rng.integers(0, 200, rng.integers(20, 60)) for _ in range(200)]
    for i in rng.integers(0, 200, 120):
        copy = texts[i].copy()
        copy[rng.integers(0, len(copy), rng.integers(0, 7))] = rng.integers(0, 200)
        texts.append(copy)
    texts += [np.append(texts[i], 7) for i in range(200, 230)]
    return [texts[i] for i in rng.permutation(len(texts))]


@pytest.mark.parametrize("threshold", [0.4, 0.7, 0.9, 1.0])
def test_near_copies_are_the_components_of_all_pairs(threshold):
    texts = _texts(np.random.default_rng(1))
    count, length = len(texts), 4
    sets = [
        {tuple(own[i : i + length].tolist()) for i in range(len(own) - length + 1)} for own in texts
    ]
    near = np.zeros((count, count), bool)
    for i, j in itertools.combinations(range(count), 2):
        near[i, j] = len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= threshold
    _, label_N = scipy.sparse.csgraph.connected_components(near, directed=False)
    settings = NearCopySettings(threshold, length)
    ids = np.array([f"text {i}" for i in range(count)])
    keys = near_copy_keys(texts, settings, ids=ids)
    first = {label: i for i, label in reversed(list(enumerate(label_N.tolist())))}
    assert keys.tolist() == [ids[first[label]] for label in label_N.tolist()]
    assert 200 < len(set(keys.tolist())) < count if threshold < 1 else True
    as_strings = [" ".join(map(str, own)) for own in texts]
    assert near_copy_keys(as_strings, settings, ids=ids).tolist() == keys.tolist()


def test_near_copies_refuse_what_is_no_text():
    with pytest.raises(ValueError, match=r"text 1 is float64\[2\]"):
        near_copy_keys([[1, 2], [0.5, 1.0]])
    with pytest.raises(ValueError, match="3 ids for 1 texts"):
        near_copy_keys(["a"], ids=["a", "b", "c"])
    for wrong in ({"threshold": 0.0}, {"shingle": 0}, {"num_hashes": 2}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            NearCopySettings(**wrong)
    assert near_copy_keys(["a b", "", "  "]).tolist() == ["0", "1", "1"]


# ── in a run ─────────────────────────────────────────────────────────────────────────────────────


def test_a_run_and_its_questions_use_sources_and_near_copies(tmp_path):
    config = bible_gpt.get_config("runlocal")
    config.read.exact.sources = SOURCES
    config.near_copies = {"threshold": 0.5, "shingle": 1}
    config.text.num_query = 4
    config.read.exact.shrink = 0.0  # so that every exact score is in the answer
    run = Run(run_settings(config.to_dict()), tmp_path)
    expected = near_copy_keys(
        token_lists(run.train, "keys"), NearCopySettings(0.5, 1), ids=run.train.ids
    )
    assert run.train.keys.tolist() == expected.tolist()
    assert 5 < len(set(expected.tolist())) < len(expected)
    assert run.reading.sources == ("kept", "sketch", "bm25", "features")
    bits_QxN = run.reading.exact_QxN.toarray()
    find = neighbours.finder(("bm25",), run.frozen, run.index, run.train)
    for own, rows in zip(bits_QxN, find(run.query, 13)[0].row_QxP, strict=True):
        assert set(rows[rows >= 0].tolist()) <= set(np.flatnonzero(own & 4).tolist())
    answers = {
        sources: ask(run, "And God", " said", " saw", AskSettings(top=200, sources=sources))
        for sources in (None, (), ("bm25",))
    }
    named = {
        sources: {
            name
            for passage in (*own.proponents, *own.opponents)
            for name in passage.found_by.split("+")
        }
        for sources, own in answers.items()
    }
    assert {"bm25", "features"} <= named[None]
    assert not named[()] & set(SOURCES)
    assert "bm25" in named["bm25",]
    assert "features" not in named["bm25",]
    with pytest.raises(ValueError, match="name any of"):
        ask(run, "And God", " said", settings=AskSettings(sources=("words",)))


def test_sources_from_the_command_line():
    def read(*words: str) -> tuple[str, ...] | None:
        return _parser().read(["--workdir=x", *words])[0].sources

    assert read() is None
    assert read("--sources=") == ()
    assert read("--sources=bm25, features") == SOURCES
    assert dataclasses.replace(ExactSettings(), sources=read("--sources=bm25")).sources == ("bm25",)


def test_of_queries_asked_as_one_the_candidates_that_most_of_them_name():
    named = neighbours.Candidates("bm25", np.array([[3, 1], [5, 3], [3, 1]]))
    assert as_one(named, 2).row_QxP.tolist() == [[3, 1]]
