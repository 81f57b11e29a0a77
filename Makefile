# `make help` lists the commands. Each sets up what it needs; what is current is not done again.

PYTHON ?= python3
ARGS ?=

SHELL := bash
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := setup

venv := .venv
bin := $(venv)/bin
python := $(bin)/python
pip := $(python) -m pip -qq --disable-pip-version-check
pytest := $(bin)/pytest
core := $(filter-out _core/_core.c,$(wildcard _core/*.pyx _core/*.pxd _core/*.c _core/*.h))
# What is linked: the PREFIX of a static libcrypto on the first line, or the word "system".
linked = prefix=$$(head -n 1 $(venv)/libcrypto); if [ "$$prefix" != system ]; then export TAPESEAL_OPENSSL="$$prefix"; fi

packages := gcc libc6-dev perl python3-dev python3-venv
# $(call need,command that fails where something is missing,Debian packages that bring it)
define need
if ! { $(1); } >/dev/null 2>&1; then \
  if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
    echo "$(2): missing. On Debian run: sudo apt-get install $(sort $(packages) $(2))" >&2; exit 1; \
  fi; \
  echo "Installing $(2) with apt-get"; \
  apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $(2) >/dev/null; \
fi
endef

.PHONY: setup demo test test-all check coverage sanitize bench bench-quick dist clean help tools programs bench-libraries FORCE

setup: $(venv)/installed ## set everything up in .venv (the default)

demo: setup ## run the main job once, on made-up order flow
	@$(bin)/tapeseal demo

test: setup programs ## run the fast tests; ARGS="-k name" chooses
	@echo "Running the fast tests"
	@$(pytest) -m "not slow" --numprocesses=3 --dist=loadfile $(ARGS)

test-all: setup programs $(venv)/fuzz ## run all tests, the slow ones and the fuzzer too
	@echo "Running all tests"
	@$(pytest) $(ARGS)

# What the tests start beside what PyPI brings; without one of them its tests are skipped. Debian's PostgreSQL would
# make a cluster of its own and start it.
programs:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  { $(call need,command -v gcore,gdb); } || echo "No gdb: the tests of core dumps are skipped"; \
	  if ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then \
	    mkdir -p /etc/postgresql-common/createcluster.d && echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.d/none.conf; \
	  fi; \
	  { $(call need,ls /usr/lib/postgresql/*/bin/initdb,postgresql); } || echo "No PostgreSQL: the tests of databases are skipped"; \
	  { $(call need,command -v sshd && command -v ssh && command -v openssl,openssh-client openssh-server openssl); } || \
	    echo "No sshd, ssh or openssl: the tests of SSH and PKI are skipped"; \
	fi

check: setup ## lint, types, stub, packaging, workflows
	@echo "Linting Python" && $(bin)/ruff check --quiet --output-format=concise && $(bin)/ruff format --check --quiet
	@echo "Linting Cython" && PATH="$(CURDIR)/$(bin):$$PATH" cython-lint _core
	@echo "Checking types" && $(bin)/mypy --no-error-summary
	@mkdir -p build && echo "Comparing the stub with the extension" && $(python) -m mypy.stubtest tapeseal._core --concise \
	  --allowlist tests/stubtest-allowlist.txt --ignore-unused-allowlist >build/stubtest.log 2>&1 || { cat build/stubtest.log; exit 1; }
	@echo "Checking what an sdist holds" && if [ -e .git ]; then $(bin)/check-manifest --quiet --no-build-isolation; \
	  else echo "  skipped: not a git checkout"; fi
	@echo "Auditing the workflows" && $(bin)/zizmor --quiet --offline --no-progress .github

# These two builds go to build/, which PYTHONPATH puts before the one in src/.
coverage: setup ## run the fast tests and report the lines they miss, the .pyx's too
	@echo "Building with line tracing" && $(linked) && \
	  TAPESEAL_TRACE=1 $(python) setup.py -q build --force --build-lib build/trace --build-temp build/trace.tmp
	@echo "Running the fast tests under coverage"
	@status=0; PYTHONPATH=build/trace $(bin)/coverage run -m pytest -m "not slow" $(ARGS) || status=$$?; \
	  $(bin)/coverage report; exit $$status

sanitize: setup ## run the fast tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@echo "Building with sanitizers" && $(linked) && \
	  TAPESEAL_SANITIZE=1 $(python) setup.py -q build --force --build-lib build/sanitize --build-temp build/sanitize.tmp
	@echo "Running the fast tests under them"
	@export TAPESEAL_SANITIZE=1; LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
	  PYTHONPATH=build/sanitize $(pytest) -m "not slow" $(ARGS)

bench: setup $(venv)/bench bench-libraries ## compare with the peers, as a table and a plot
	@$(python) -m benchmarks $(ARGS)

bench-quick: setup $(venv)/bench bench-libraries ## run each benchmark briefly: does it run, is it right
	@mkdir -p build && echo "Running the benchmarks briefly"
	@$(python) -m pytest benchmarks --benchmark-min-rounds=1 --benchmark-max-time=0.05 --benchmark-warmup=off \
	  --benchmark-json=build/benchmarks.json $(ARGS)

# The environment is readable to all: some tests become another user.
dist: setup ## build the sdist, from it the wheel, and test that wheel without the source
	@rm -rf dist build/dist && mkdir -p dist build
	@echo "Building the sdist, and the wheel from it" && $(linked) && \
	  $(python) -m build --outdir build/dist >build/dist.log 2>&1 || { tail -n 40 build/dist.log; exit 1; }
	@mv build/dist/*.tar.gz dist/
	@echo "Repairing the wheel" && if [ "$$(uname)" = Linux ]; then \
	  PATH="$(CURDIR)/$(bin):$$PATH" auditwheel repair --wheel-dir dist build/dist/*.whl; else mv build/dist/*.whl dist/; fi
	@echo "Testing it in a clean environment" && work=$$(mktemp -d) && trap 'rm -rf "$$work"' EXIT && \
	  chmod 755 "$$work" && \
	  $(PYTHON) -m venv "$$work/venv" && "$$work/venv/bin/python" -m pip -qq install --upgrade pip && \
	  "$$work/venv/bin/python" -m pip -qq install "$$(echo $(CURDIR)/dist/*.whl)[cli]" --group test && \
	  tar xzf dist/*.tar.gz -C "$$work" && cd "$$work"/tapeseal-* && rm -rf src _core setup.py && \
	  "$$work/venv/bin/pytest" -m "not slow" $(ARGS)
	@ls dist

clean: ## remove all that was made here; the libcrypto in the cache stays
	rm -rf $(venv) build dist src/*.egg-info src/tapeseal/_core.*.so _core/_core.c .coverage* .hypothesis .*_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | while IFS='|' read -r name text; do printf 'make %-12s %s\n' "$$name" "$$text"; done

# Each line below is about ten milliseconds where nothing is missing.
tools:
	@$(call need,command -v $(PYTHON),python3)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; PYTHON=... names one" >&2; exit 1; }
	@$(call need,$(PYTHON) -c 'import ensurepip',python3-venv)
	@$(call need,test -e "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h",python3-dev)
	@$(call need,echo "#include <stdio.h>" | gcc -E -,gcc libc6-dev)

$(python): | tools
	@echo "Making .venv"
	@$(PYTHON) -m venv $(venv)
	@$(pip) install --upgrade pip

# Sticky: what was linked once stays linked until a static libcrypto can be had. perl is what building one takes.
$(venv)/libcrypto: FORCE | tools $(python)
	@set -e; prefix=$$(bash _core/build-openssl.sh --where); \
	if [ ! -e "$$prefix/stamp" ] && { [ -n "$$TAPESEAL_OPENSSL_TARBALL" ] || [ "$$(cat $@ 2>/dev/null)" != system ]; }; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then $(call need,perl -MIPC::Cmd -MPod::Usage -e1,perl); fi; \
	fi; \
	if [ "$$(cat $@ 2>/dev/null)" != system ] || [ -n "$$TAPESEAL_OPENSSL_TARBALL" ]; then \
	  status=0; bash _core/build-openssl.sh "$$prefix" || status=$$?; \
	  if [ $$status != 0 ] && [ $$status != 2 ]; then exit $$status; fi; \
	fi; \
	if [ -e "$$prefix/stamp" ]; then \
	  printf '%s\n' "$$prefix" "$$(cat "$$prefix/stamp")" >$@.new; \
	else \
	  echo "NOTICE: links the system's libcrypto, which is slower than the 3.5 LTS of the releases."; \
	  echo "        TAPESEAL_OPENSSL_TARBALL=FILE make builds that from upstream's tarball."; \
	  $(call need,echo "#include <openssl/evp.h>" | gcc -E -,libssl-dev); \
	  echo system >$@.new; \
	fi; \
	if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(venv)/installed: pyproject.toml setup.py $(core) $(venv)/libcrypto $(if $(wildcard src/tapeseal/_core.*.so),,FORCE) | tools $(python)
	@set -e; $(linked); \
	if [ -n "$(filter pyproject.toml setup.py,$?)" ]; then \
	  echo "Installing tapeseal, editable, and the development tools"; \
	  rm -rf src/tapeseal/_core.*.so _core/_core.c build/lib.* build/temp.*; \
	  $(pip) install --group build; \
	  $(pip) install --no-build-isolation --editable '.[all]' --group dev; \
	else \
	  echo "Building the extension"; \
	  $(python) setup.py -q build_ext --inplace --force; \
	fi
	@touch $@

# What the benchmarks compile against; they go on without it.
bench-libraries: | tools
	@if [ "$$(uname -m)" = x86_64 ]; then \
	  ( $(call need,echo "#include <intel-ipsec-mb.h>" | gcc -E -,libipsec-mb-dev) ) || true; fi
	@( $(call need,echo "#include <openssl/evp.h>" | gcc -E -,libssl-dev) ) || true

$(venv)/bench $(venv)/fuzz: pyproject.toml | $(python)
	@echo "Installing dependency group $(@F)"
	@$(pip) install --group $(@F)
	@touch $@
