# %% [markdown]
# # Your own classifier
#
# Ten minutes from a model to the examples behind its mistakes: train a small classifier, ask which
# training images made it decide as it does, check the answer by leaving them out, and find wrong
# labels. Nothing is downloaded: the digits come with scikit-learn.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import stride_jax
from stride_jax.models import MLP, TrainSettings, fit, initial_params

x, y = load_digits(return_X_y=True)
x, y = (x / 16).astype(np.float32), y.astype(np.int32)
order = np.random.default_rng(0).permutation(len(x))
x, y = x[order], y[order]
train, query = slice(0, 1400), slice(1400, 1797)

# %% [markdown]
# ## A model of yours
#
# Any function `(params, inputs) -> (logits, {name: activation})` will do; flax, equinox and haiku
# models are wrapped by `from_linen`, `from_nnx`, `from_equinox` and `from_haiku`. Here it is the
# library's MLP, trained by its plain training loop.

# %%
model = MLP(num_classes=10, widths=(128,))
start = initial_params(model, jax.random.key(0), x[train])


def logits_of(params, inputs):
    return model.apply({"params": params}, inputs)[0]


def trained(rows, seed=1):
    """The classifier trained on some rows."""
    settings = TrainSettings(epochs=20)
    return fit(logits_of, start, x[train], y[train], rows, jax.random.key(seed), settings)


params = trained(np.arange(1400))
guess = np.argmax(logits_of(params, x[query]), axis=1)
print(f"accuracy {np.mean(guess == y[query]):.3f} on {len(guess)} images it has not seen")

# %% [markdown]
# ## One pass over the training data
#
# `fit` reads the training set once and keeps K small steering matrices, and the examples that
# matter most. The result is an index: it answers any query later, and does not grow with the
# training set.

# %%
tapped = stride_jax.from_model(model)
index = stride_jax.fit(tapped, params, x[train], y[train])
index

# %% [markdown]
# ## Why did it get this one wrong?
#
# `attribute` gives a score for every pair of a query and a training example. Positive is a
# *proponent*: without it, the query's loss would be higher. With the training data at hand
# (`train=`), the likeliest candidates are scored exactly.

# %%
wrong = np.flatnonzero(guess != y[query])
attribution = stride_jax.attribute(
    tapped, params, index, x[query], y[query], train=stride_jax.Examples(x[train], y[train])
)
attribution.top(2).head(8)

# %%
scores = attribution.scores_QxN[wrong[0]]  # of the first mistake, for all training examples
helping, hurting = np.argsort(-scores)[:4], np.argsort(scores)[:4]
figure, axes = plt.subplots(1, 9, figsize=(11, 1.9))
axes[0].set_title(f"is {y[query][wrong[0]]}, taken\nfor {guess[wrong[0]]}", fontsize=9)
axes[0].imshow(x[query][wrong[0]].reshape(8, 8), cmap="gray")
for axis, row in zip(axes[1:], [*helping, *hurting], strict=True):
    axis.imshow(x[train][row].reshape(8, 8), cmap="gray")
    mark = "▲" if scores[row] > 0 else "▼"
    axis.set_title(f"{mark} {scores[row]:+.3f}\nlabel {y[train][row]}", fontsize=9)
for axis in axes:
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Is it true? Leave them out
#
# The test of an attribution is retraining. Of this mistake we take the 40 strongest *opponents*
# away, train again with three seeds, and compare with taking away 40 at random, or the 40 strongest
# proponents. Trust a method that passes such tests on your data; `stride_jax.evaluation` does it at
# scale, with intervals (LDS).


# %%
def without(rows):
    """Loss of the mistake after training without some rows, mean of three seeds."""
    kept, asked = np.setdiff1d(np.arange(1400), rows), x[query][wrong[:1]]
    logits = np.stack([logits_of(trained(kept, seed), asked)[0] for seed in range(3)])
    return float(-jax.nn.log_softmax(logits)[:, y[query][wrong[0]]].mean())


at_random = np.random.default_rng(1).choice(1400, 40, replace=False)
loss = {
    "with everything": without([]),
    "without 40 at random": without(at_random),
    "without 40 opponents": without(np.argsort(scores)[:40]),
    "without 40 proponents": without(np.argsort(-scores)[:40]),
}
for name, value in loss.items():
    print(f"{name:22} loss {value:.2f} nats")
assert loss["without 40 opponents"] < loss["without 40 at random"] / 2
assert loss["without 40 proponents"] > loss["without 40 at random"] * 2

# %% [markdown]
# ## Wrong labels
#
# We give 30 training examples a wrong label, train on that, and look for them: `self_influence`
# ranks the training examples by what the model would lose on each if it alone were left out.

# %%
rng = np.random.default_rng(2)
spoiled = rng.choice(1400, 30, replace=False)
y_spoiled = y[train].copy()
y_spoiled[spoiled] = (y_spoiled[spoiled] + rng.integers(1, 10, 30)) % 10
settings = TrainSettings(epochs=20)
fooled = fit(logits_of, start, x[train], y_spoiled, np.arange(1400), jax.random.key(1), settings)
index = stride_jax.fit(tapped, fooled, x[train], y_spoiled)
examples = stride_jax.Examples(x[train], y_spoiled)
suspects = stride_jax.self_influence(tapped, fooled, index, examples).suspects(30)
found = np.isin(examples.ids[spoiled], suspects["id"]).sum()
print(f"of 30 wrong labels, {found} are among the 30 strongest suspects")
assert found >= 20
suspects.head()

# %% [markdown]
# ## Keep it
#
# An index and an attribution are files with their settings and versions in them. `Attribution.save`
# writes Parquet that pandas reads.

# %%
import pathlib
import tempfile

folder = pathlib.Path(tempfile.mkdtemp())
attribution.save(folder / "scores.parquet")
again = stride_jax.Attribution.load(folder / "scores.parquet")
again

# %% [markdown]
# Next: [your own text](language_model.py), [choosing K, design and budget](../choose.md), [reading
# a certificate](../certificate.md).
