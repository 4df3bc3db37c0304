# make run   set up, create the database, serve on port 8000
# make test  set up and run the tests
# make docs  the documentation as a site, in docs/_build/html
# make settings  write the tables of settings into the documents
# make matrix  the tests on each Python that is here, with the lowest and the newest dependencies
# make soak  ten minutes of load with a restart each 1.5 s, and what its clients saw; 100 reloads;
#            half a minute of attacks
# make proxies  ten rounds of restarts and stops behind nginx and HAProxy
# make pictures  those of the status page in docs/; needs chromium and chromium-driver
# make bench-workers  what a second worker brings; needs wrk
# make bench the speed beside other servers; needs wrk and libev (Debian: wrk, libev-dev)
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: run test check docs settings matrix soak proxies pictures bench bench-workers clean

run: $(VENV)/.run
	@exec $(BIN)/python app.py

# In two processes, since tests wait more than they work; but those that measure time. With ARGS just
# as pytest does it.
test: $(VENV)/.dev
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not alone"
	$(BIN)/python -m pytest -m alone
endif

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: docs settings matrix
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html

settings: $(VENV)/.run
	$(BIN)/python docs/settings_tables.py

# ARGS: --short, --whole, --python 3.10, --bounds lowest, or what pytest is to run.
matrix: $(VENV)/.dev
	$(BIN)/python tests/matrix.py $(ARGS)

# So many restarts, and so many seconds from one to the next.
RESTARTS = 400
PACE = 1.5
soak: $(VENV)/.dev
	UNNOTICED_RESTARTS=$(RESTARTS) UNNOTICED_PACE=$(PACE) $(BIN)/python -m pytest -s \
		"tests/test_unnoticed.py::test_no_client_notices_a_restart[tcp]" $(ARGS)
	ENDURED_RELOADS=100 $(BIN)/python -m pytest -s tests/test_endurance.py -k reloads $(ARGS)
	ABUSE_SECONDS=30 $(BIN)/python -m pytest -s tests/test_abuse.py $(ARGS)

proxies: $(VENV)/.dev
	PROXY_ROUNDS=10 REQUIRE_PROXIES=1 $(BIN)/python -m pytest -s tests/test_proxies.py $(ARGS)

pictures: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python tests/pictures.py docs

# The peers have an environment of their own.
BENCH = .venv-bench
bench:
	@command -v wrk >/dev/null || { echo "make bench needs wrk (Debian: apt-get install wrk libev-dev)"; exit 1; }
	@test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip --quiet --disable-pip-version-check install -r benchmarks/requirements.txt
	$(BENCH)/bin/python benchmarks/bench.py $(ARGS)

bench-workers: $(VENV)/.dev
	@command -v wrk >/dev/null || { echo "make bench-workers needs wrk (Debian: apt-get install wrk)"; exit 1; }
	$(BIN)/python benchmarks/workers.py $(ARGS)

clean:
	rm -rf $(VENV) $(BENCH) .venv-matrix docs/_build .mypy_cache .ruff_cache .pytest_cache *.egg-info

# An environment holds absolute paths, its own and this directory's. .made names both when it is
# complete: one that was not finished, or was moved, or whose Python is gone, is made anew.
PLACE = pwd -P && cd $(VENV) && pwd -P
IS_MADE = $(BIN)/python -c '' && test "$$(cat $(VENV)/.made)" = "$$($(PLACE))" && echo yes
ifneq ($(shell { $(IS_MADE); } 2>/dev/null),yes)
.PHONY: $(VENV)/.made
endif

# One without the file is somebody's own, and kept if it works.
$(VENV)/.made:
	@if test -e $@ || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo '$(PYTHON) -m venv $(VENV)'; \
		rm -rf $(VENV) && mkdir -p $(VENV) && touch $@ && \
		$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; \
	fi
	@place=$$($(PLACE)) && echo "$$place" >$@

# A stamp is newer than what it was made from: nothing is installed twice.
$(VENV)/.run: requirements.txt pyproject.toml $(VENV)/.made
	$(PIP) install -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run
	$(PIP) install -r requirements-dev.txt
	@touch $@

$(VENV)/.docs: requirements-docs.txt $(VENV)/.run
	$(PIP) install -r requirements-docs.txt
	@touch $@
