# Two commands: `make demo` (the main job) and `make test`. Both set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_FLAGS := $(if $(QUICK),--quick,)

.PHONY: demo test lint setup clean bench-whole-way bench-crash bench-hostile bench-distance bench-axes bench-realism bench-registration bench-dataset bench-resume bench-dask bench-xray bench-films bone-finder fingerprint-network bench-out-of-the-box bench-identification bench-training bench-ablation bench-transfer bench-correspondence bench-shape-model bench-reconstruction

setup: $(VENV)/.installed

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "osteoprint needs Python 3.11 or newer: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.python
	@echo "Installing osteoprint and what it needs (a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/osteoprint demo --out demo $(DEMO_FLAGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TEST_FLAGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench-whole-way: $(VENV)/.installed
	$(BIN)/python benchmarks/whole_way.py

bench-crash: $(VENV)/.installed
	$(BIN)/python benchmarks/crash.py

bench-hostile: $(VENV)/.installed
	$(BIN)/python benchmarks/hostile.py

bench-distance: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/distance.py

clean:
	rm -rf demo build dist

bench-axes: $(VENV)/.installed
	$(BIN)/python benchmarks/frames.py

bench-realism: $(VENV)/.installed
	$(BIN)/python benchmarks/realism.py

bench-registration: $(VENV)/.installed
	$(BIN)/python benchmarks/registration.py

bench-dataset: $(VENV)/.installed
	$(BIN)/python benchmarks/paper_dataset.py

bench-resume: $(VENV)/.installed
	$(BIN)/python benchmarks/resume.py

bench-dask: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/dask_workers.py

bench-xray: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --group peers
	$(BIN)/python benchmarks/xray_accuracy.py
	$(BIN)/python benchmarks/xray_speed.py

bench-films: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/film_intake.py

# Makes the network that ships again, from nothing (about half an hour on two cores).
bone-finder: $(VENV)/.installed
	$(BIN)/python -m osteoprint.xray.finder_training --out src/osteoprint/xray/film_finder.safetensors

# Makes the fingerprint network that ships again, on phantoms alone (an hour and a half on two cores).
fingerprint-network: $(VENV)/.installed
	$(BIN)/osteoprint train --phantoms --resume --out src/osteoprint/fingerprint/shipped.safetensors

bench-out-of-the-box: $(VENV)/.installed
	$(BIN)/python benchmarks/out_of_the_box.py

# Two hours on two cores; parts: python benchmarks/identification.py --parts train clinic
bench-identification: $(VENV)/.installed
	$(BIN)/python benchmarks/identification.py

bench-training: $(VENV)/.installed
	$(BIN)/python benchmarks/training.py

bench-ablation: $(VENV)/.installed
	$(BIN)/python benchmarks/ablation.py

bench-transfer: $(VENV)/.installed
	$(BIN)/python benchmarks/transfer.py

bench-correspondence: $(VENV)/.installed
	$(BIN)/python benchmarks/correspondence.py

bench-shape-model: $(VENV)/.installed
	$(BIN)/python benchmarks/shape_model.py

# About an hour and a half on two cores; parts: python benchmarks/reconstruction.py --parts femora
bench-reconstruction: $(VENV)/.installed
	$(BIN)/python benchmarks/reconstruction.py
