# The verbs people need. `make demo` and `make test` work in a fresh clone; a second call installs nothing.
# WORKERS=<n> is how many processes run the tests. TORCH_INDEX=<url> takes torch from another package index, for example one with CPU-only builds.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TORCH_INDEX ?=
WORKERS ?= 2
TESTS ?=
PIP_AUDIT ?= 2.10.1
TORCH_FLAGS := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),)

.PHONY: demo examples example-images example-ray test test-slow test-processes test-properties test-faults test-install test-bridges test-oldest test-newest coverage audit lint format bench clean

demo: $(VENV)/.demo-installed
	$(BIN)/hfdataopt demo

examples: $(VENV)/.demo-installed
	$(BIN)/python examples/filter_before_sft.py
	$(BIN)/python examples/filter_stream.py
	$(BIN)/python examples/find_label_errors.py
	$(BIN)/python examples/human_preference.py
	$(BIN)/python examples/optimize_prompt.py
	$(BIN)/python examples/preference_pairs.py
	$(BIN)/python examples/prompt_then_weights.py
	$(BIN)/python examples/reward_model_nice.py
	$(BIN)/python examples/sft_nice_selection.py

example-images: $(VENV)/.demo-installed
	$(PIP) -e '.[images]'
	$(BIN)/python examples/text_to_image_preference.py

example-ray: $(VENV)/.demo-installed
	$(PIP) -e '.[ray]'
	$(BIN)/python examples/filter_on_ray.py

test: $(VENV)/.test-installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-slow: $(VENV)/.test-installed
	$(BIN)/python -m pytest -m slow --timeout 3600

# Ten times the draws of bad input, from other seeds each time.
test-properties: $(VENV)/.test-installed
	HYPOTHESIS_PROFILE=slow $(BIN)/python -m pytest tests/properties -n $(WORKERS) --dist loadfile --timeout 3600

# Every scorer, trainer, filter and fault with two processes; a part of test-slow.
test-processes: $(VENV)/.test-installed
	$(BIN)/python -m pytest tests/processes tests/attribution/test_processes.py -m "slow or not slow" --timeout 3600

# 200 kills at random points, and disks that fail, with a table: minutes on two free cores. `make test` has a few of them.
test-faults: $(VENV)/.test-installed
	$(BIN)/python -m tests.faults.campaign --kills 200 --seed 0

test-install: $(VENV)/.test-installed
	$(BIN)/python tests/install/wheel_smoke.py

# Environments of their own for packages that would disturb this one.
test-bridges: $(VENV)/.test-installed
	$(BIN)/python tests/bridges/run.py build/bridges

# The oldest and the newest versions that are allowed; TESTS=<files> runs some of the tests.
test-oldest test-newest:
	$(PYTHON) tests/install/bounds.py $(@:test-%=%) build/bounds $(TESTS)

coverage: $(VENV)/.dev-installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --cov --cov-report=term:skip-covered $(TESTS)

# What is installed here against the database of known vulnerabilities; without a connection to it, this fails.
audit: $(VENV)/.test-installed
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==$(PIP_AUDIT)
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' > build/audit/installed.txt
	build/audit/bin/pip-audit --strict --no-deps --disable-pip -r build/audit/installed.txt

lint: $(VENV)/.dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What needs no data, no peers and no GPU; writes benchmarks/results and the tables of benchmarks/README.md.
bench: $(VENV)/.test-installed
	$(BIN)/python benchmarks/shapley_speed.py
	$(BIN)/python benchmarks/gradient_features.py
	$(BIN)/python benchmarks/policy_gradients.py
	$(BIN)/python benchmarks/filter_speed.py --part map top memory
	$(BIN)/python benchmarks/endpoint_overhead.py
	$(BIN)/python benchmarks/bandit_variance.py
	$(BIN)/python benchmarks/surrogates.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/results.py

clean:
	rm -rf $(VENV) build dist demo-output *.egg-info

# torch comes first and alone: with it in place, no other requirement can pull a CUDA build.
$(VENV)/.torch-installed: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_FLAGS) torch
	touch $@

$(VENV)/.demo-installed: pyproject.toml $(VENV)/.torch-installed
	$(PIP) -e '.[plot]'
	touch $@

$(VENV)/.test-installed: pyproject.toml $(VENV)/.torch-installed
	$(PIP) -e '.[test]'
	touch $@ $(VENV)/.demo-installed

$(VENV)/.dev-installed: pyproject.toml $(VENV)/.torch-installed
	$(PIP) -e '.[dev]'
	touch $@ $(VENV)/.demo-installed $(VENV)/.test-installed
