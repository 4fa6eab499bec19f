# make run    set everything up and run the pipeline on the built-in phantom eyes, to the report
# make test   set everything up and run the tests; make test-long those that take minutes, make test-cluster those
#             on a Slurm that it starts, as root
# make lint   check the style of the code and of the workflow, and the installed packages
# make clean  remove results and phantom data; make distclean also the environment

CORES ?= 2
BIN := .venv/bin
PYTHON ?= $(shell command -v python3.11 || command -v python3)

.PHONY: run test test-long test-cluster lint install clean distclean

run: install
	$(BIN)/snakemake --cores $(CORES)
	@echo "The report: results/report/index.html"

test: install
	tests/install-chromium
	$(BIN)/python -m pytest --numprocesses $(CORES) --dist loadfile

test-long: install
	$(BIN)/python -m pytest -m long --numprocesses $(CORES) --dist loadfile

test-cluster: install
	tests/cluster/start-slurm
	trap tests/cluster/stop-slurm EXIT INT TERM; $(BIN)/python -m pytest tests/cluster

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check workflow
	$(BIN)/snakemake --lint
	$(BIN)/python tests/audit.py

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "Python 3.11 is needed, $(PYTHON) is another: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf results data/phantom

distclean: clean
	rm -rf .venv .snakemake
