# Every task of the project. `make setup` is quick when nothing changed.
PYTHON ?= python3
VENV ?= .venv
LOWEST ?= .venv-lowest
WORKERS ?= 2
EXAMPLES ?= 2000
REPORT := -o junit_family=xunit1 --junitxml build
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test slow slow-list check fix docs site figures screenshots coverage models bench verify ci messages
.PHONY: cards mutations fuzz wheel lowest

setup: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,docs]"
	touch $@

demo: setup
	$(BIN)/inflate3d demo

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" $(REPORT)/test.xml

# Those that take seconds each: tests/slow.txt, which `make slow-list` writes anew from a run of all.
slow: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow $(REPORT)/slow.xml

# On the oldest versions that pyproject.toml allows, in an environment of their own (7 GB). Gradio, which the page needs,
# wants newer ones of other packages.
lowest:
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --constraint tests/lowest.txt --editable ".[test]"
	$(LOWEST)/bin/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" --ignore-glob "*/test_app*.py"

slow-list: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --record-slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# All pictures anew from the weights, the demo clip and the figures that stand in docs/*.json, then the site.
docs: figures screenshots site

site: setup
	$(BIN)/mkdocs build --strict --quiet

figures: setup
	$(BIN)/python docs/figures.py
	$(BIN)/python docs/fvd_report.py draw
	$(BIN)/python docs/experiments.py draw
	$(BIN)/python benchmarks/report.py --draw
	$(BIN)/python docs/first_table.py
	$(BIN)/python docs/verify.py --draw

# Of the page, in Chromium, with the real weights and the demo clip.
screenshots: setup
	INFLATE3D_SCREENSHOTS=docs/figures $(BIN)/python -m pytest -q tests/test_app_page.py -k walk

coverage: setup
	$(BIN)/python docs/coverage.py
	$(BIN)/python docs/verify.py --draw

models: setup
	$(BIN)/python docs/models.py
	$(BIN)/python docs/verify.py --draw

# Half an hour; benchmarks/README.md says what goes into the folders PEERS and DATA.
bench: setup
	$(BIN)/python benchmarks/report.py --peers "$(PEERS)" --data "$(DATA)" $(ARGUMENTS)
	$(BIN)/python docs/verify.py --draw

# All that is claimed, by the commands of docs/claims.toml; docs/verified.md says what they may be given.
verify: setup
	$(BIN)/python docs/verify.py --data "$(DATA)" --peers "$(PEERS)" --reports $(wildcard build/*.xml) $(ARGUMENTS)

mutations: setup
	$(BIN)/python tests/mutations.py

# Each parser of our own on EXAMPLES mutated files for each property: minutes.
fuzz: setup
	INFLATE3D_FUZZ=$(EXAMPLES) $(BIN)/python -m pytest -q -n $(WORKERS) tests/test_fuzz.py

messages: setup
	$(BIN)/python docs/messages.py

cards: setup
	$(BIN)/python docs/cards.py

# Wheel and sdist, each used in an environment that sees the first one's packages but not the checkout.
wheel: setup
	rm -rf dist && $(BIN)/python -m build --no-isolation --outdir dist . > /dev/null
	$(BIN)/python tests/check_wheel.py dist

ci: check test slow site wheel
