# Two commands matter: `make demo` and `make test`. Everything else is a convenience.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help install demo test stress bench peers experiments notebooks readme lint clean

help:
	@echo "make demo          install into $(VENV), make synthetic data, train, report (CUDA=1: CUDA builds)"
	@echo "make test          the test suite, under 10 minutes on two cores"
	@echo "make stress        the slow and large tests, and 100,000 damaged files"
	@echo "make experiments   train what experiments/ lists and write experiments/results/ (RECSYS_EMB_DATA: the data)"
	@echo "make bench         speed and memory, written to benchmarks/results/ (PEERS=1: beside FuxiCTR and DeepCTR-Torch)"
	@echo "make notebooks     execute notebooks/ and keep their outputs"
	@echo "make readme        the generated tables of README.md"
	@echo "make lint          ruff and mypy"

install: $(VENV)/.installed

# torch first, so that nothing pulls another build; torchrec without its dependencies, because it declares the CUDA build of FBGEMM.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt torch
ifdef CUDA
	$(PIP) install -q -c constraints.txt -e '.[cuda,dev]'
else
	$(PIP) install -q -c constraints.txt fbgemm-gpu-cpu
	$(PIP) install -q -c constraints.txt --no-deps torchrec
	$(PIP) install -q -c constraints.txt -e '.[cpu,dev]'
endif
	@echo "Installed. (pip's remark that torchrec wants fbgemm-gpu is expected: fbgemm-gpu-cpu stands in for it.)"
	@touch $@

demo: install
	$(BIN)/recsys-emb demo --out demo

# Side by side, one thread each: tests are too small to share among threads.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

stress: install
	$(BIN)/python -m pytest -m stress
	$(BENCH).robustness

# One result per model; tables of 33.8 million ids apart, where a peer with dense Adam wants 10 GB.
BENCH := $(BIN)/python -m benchmarks
RESULTS := benchmarks/results
bench: install $(if $(PEERS),peers)
	for model in deepfm dcnv2 autoint; do \
	  $(BENCH).training --model $$model --out $(RESULTS)/training-$$model.json $(if $(PEERS),--peer fuxictr deepctr) && \
	  $(BENCH).training --model $$model --ids 100000 33800000 --out $(RESULTS)/training-$$model-33m.json \
	    $(if $(PEERS),--peer fuxictr --peer-ids 33800000) || exit 1; \
	done
	$(BENCH).training --model din --out $(RESULTS)/training-din.json $(if $(PEERS),--peer fuxictr deepctr)
	$(BENCH).backends
	$(BENCH).lookup
	$(BENCH).data $(if $(PEERS),--peer fuxictr)
	$(BENCH).predict --backends hash qr dhe tt_rec unified cce optembed $(if $(PEERS),--peer fuxictr deepctr)
	$(BENCH).serve
	$(BENCH).scale
	$(BENCH).processes

peers: .venv-peers/.installed

.venv-peers/.installed: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip --disable-pip-version-check install -q torch==2.13.0
	.venv-peers/bin/python -m pip --disable-pip-version-check install -q -r $<
	.venv-peers/bin/python -m pip --disable-pip-version-check install -q --no-deps deepctr-torch==0.3.0
	@touch $@

experiments: install
	$(BIN)/python experiments/run.py

notebooks: install
	$(BIN)/jupyter-execute --inplace notebooks/*.ipynb

readme: install
	$(BIN)/python -m tests.test_readme

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	rm -rf $(VENV) demo
