# Everything happens in .venv, which the first command sets up; test-clients and test-torches have environments of their
# own, in the directories CLIENTS and TORCHES; so have test-corpora, in CORPORA, and test-matrix, in MATRIX.
# PYTHON=python3.12 picks another interpreter, ARGS goes to the command underneath: make test ARGS="-k ties".
# V=1 shows every command and all that it says.
PYTHON ?= python3
VENV := .venv
CLIENTS ?= .clients
CORPORA ?= .corpora
MATRIX ?= .matrix
TORCHES ?= .torches
BIN := $(VENV)/bin

SHELL := bash
.SHELLFLAGS := -o pipefail -c
ifndef V
.SILENT:
endif

# While something is fetched, a line every five seconds says how much has come. (Downloads lie in TMPDIR.)
define install
mkdir -p $(1)/tmp; \
  (while sleep 5 >/dev/null; do echo "  $$(du -sm $(1)/ | cut -f1) MB in $(1)"; done) & trap "kill $$!" EXIT; \
  TMPDIR=$(abspath $(1))/tmp $(1)/bin/python -m pip --disable-pip-version-check $(if $(V),,--quiet) install
endef

# A compiler's command lines go to a log, which is shown if the command fails. What setup.py says is shown at once, and
# so are warnings, GCC's and nvcc's. (A variable, because make would take its parenthesis for the end of a call.)
SHOWN := s/^torch_ctc_align: //p; /[0-9])\?: warning/p
define quietly
mkdir -p build; \
  $(1) $(if $(V),,2>&1 | tee build/log | sed -un '$(SHOWN)' || { cat build/log; exit 1; })
endef

# Stamps: what has been installed lies in the environment, what has been built lies beside the objects.
TOOLS := $(VENV)/.tools
EXAMPLES := $(VENV)/.examples
DOCS := $(VENV)/.docs
LINKED := $(VENV)/.linked
CLIENTS_READY := $(CLIENTS)/.ready
CORPORA_READY := $(CORPORA)/.ready
BUILT := build/.built

# Directories are listed too: their time changes when a file comes or goes.
NATIVE := setup.py $(shell find csrc)
CXX_FILES = $(shell find csrc test benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help build test test-all test-clients test-corpora test-matrix test-torches sanitize demo train-demo docs lint format wheel wheel-aarch64 check-wheel sdist check-sdist release-check cuda-compile cuda-cycles instructions bench bench-long bench-plot gpu clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

help:  ## list these commands
	awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: $(BUILT) $(LINKED)  ## build the extension in place

# On a busy machine threads that spin while they wait slow tiny cases down many times over; these sleep.
test test-all test-clients test-torches: export OMP_WAIT_POLICY ?= passive
pytest := -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile
test: build  ## run the tests, in seven minutes: all but those that are marked slow
	$(BIN)/python $(pytest) -m "not slow" $(ARGS)

test-all: build  ## run all tests
	$(BIN)/python $(pytest) $(ARGS)

# One build of the extension serves every Python and torch, so the clients import the clone. The libraries are what
# torchaudio is linked against: see test/clients_environment.py.
test-clients: export CTC_ALIGN_REQUIRE := clients,torchaudio$(CTC_ALIGN_REQUIRE:%=,%)
test-clients: $(BUILT) $(CLIENTS_READY)  ## run clients and torchaudio with our functions in them; CLIENTS=directory
	LD_LIBRARY_PATH=$(abspath $(CLIENTS))/stubs$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH} \
	  $(CLIENTS)/bin/python -m pytest test/test_clients.py test/test_drop_in.py test/test_peers.py $(ARGS)

# Ray and the libraries of the recipes in docs/corpora.md. Ray starts once, for all of these tests.
test-corpora: export OMP_WAIT_POLICY ?= passive
test-corpora: export CTC_ALIGN_REQUIRE := corpora$(CTC_ALIGN_REQUIRE:%=,%)
test-corpora: $(BUILT) $(CORPORA_READY)  ## align corpora on Ray, in datasets.map and in the other recipes; CORPORA=directory
	$(CORPORA)/bin/python -m pytest test/test_corpora_ray.py test/test_corpora_recipes.py test/test_corpus_manifest_kinds.py $(ARGS)

# What depends on torch itself: kinds of errors, interrupts, the operator's registrations. One build serves all of them.
TORCH_TESTS := $(addprefix test/test_,arguments.py arguments_of_functions.py errors.py mistakes.py operator.py interrupt.py memory.py \
  star_operator.py star_posteriors_gradients.py ctc_loss.py ctc_loss_arguments.py ctc_loss_graphs.py ctc_loss_of_torch.py \
  windows.py window_mistakes.py priors.py saved_programs.py speech_aligner.py)
test-torches: $(BUILT) $(TORCHES)/oldest/.ready $(TORCHES)/newest/.ready  ## run some tests on the oldest and the newest torch; TORCHES=directory
	$(call install,$(TORCHES)/newest) --upgrade --upgrade-strategy only-if-needed -r test/requirements-torch-newest.txt
	for torch in oldest newest; do \
	  $(TORCHES)/$$torch/bin/python $(pytest) $(TORCH_TESTS) $(ARGS) || exit; done

# What each environment takes from PyPI is gone afterwards: at most 15 GB lie there at a time. ARGS="--torch 2.12
# --python 3.13" chooses cells; ARGS=--resume goes on after an interruption; MATRIX_PYTHONS=path:path names interpreters.
test-matrix: export OMP_WAIT_POLICY ?= passive
test-matrix: wheel  ## check the wheel beside every torch on every Python, one minute each; MATRIX=directory
	$(BIN)/python test/check_matrix.py dist/*.whl --folder $(MATRIX) $(ARGS)

sanitize:  ## run the CPU kernel under AddressSanitizer, UBSan and ThreadSanitizer; needs only a C++ compiler
	$(PYTHON) test/run_sanitizers.py $(ARGS)

demo: build  ## align a real recording with ctc-align: word table, picture, page to listen to, JSON, subtitles
	$(BIN)/ctc-align examples/data/sense_and_sensibility_01_austen_64kb-0870.wav --format json,srt,html,png \
	  --out-dir aligned --force $(ARGS)

train-demo: build $(EXAMPLES)  ## train a CTC model and a duration predictor on real speech, with the aligner
	$(BIN)/python examples/train_ctc.py $(ARGS)
	$(BIN)/python examples/train_durations.py $(ARGS)

docs: build $(DOCS)  ## build the documentation site: build/site/index.html
	$(BIN)/python docs/build_site.py build/site

lint: $(TOOLS)  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy
	$(BIN)/validate-pyproject pyproject.toml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

format: $(TOOLS)  ## mend style in place
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FILES)

# Not isolated: an isolated build would fetch a torch of its own, several GB with CUDA, to read its headers.
# build/lib is where setuptools gathers the package; without the rm, files deleted since would be packed as well.
# auditwheel finds the oldest system that the wheel loads on, and names it so. torch brings its libraries itself.
wheel: $(TOOLS)  ## build dist/*.whl
	rm -rf build/lib* build/bdist* build/wheel dist
	$(call quietly,$(BIN)/python -m build --no-isolation --wheel --outdir build/wheel)
	PATH=$(abspath $(BIN)):$$PATH auditwheel $(if $(V),--verbose,) repair --exclude 'libtorch*.so' --exclude 'libc10*.so' \
	  --wheel-dir dist build/wheel/*.whl $(if $(V),,2>build/log || { cat build/log; exit 1; })
	ls dist/*.whl

# The headers are those of the torch that is here, the libraries to link with those of the oldest torch for aarch64.
AARCH64 := build/aarch64
AARCH64_TORCH ?= $(AARCH64)/torch
wheel-aarch64: $(TOOLS) $(AARCH64_TORCH)/.ready  ## build dist/aarch64/*.whl on any processor; needs aarch64-linux-gnu-g++
	rm -rf $(AARCH64)/lib* $(AARCH64)/bdist* $(AARCH64)/wheel dist/aarch64
	$(call quietly,CC=aarch64-linux-gnu-gcc CXX=aarch64-linux-gnu-g++ LDFLAGS=-L$(AARCH64_TORCH)/torch/lib CTC_ALIGN_CUDA=0 \
	  _PYTHON_HOST_PLATFORM=linux-aarch64 $(BIN)/python setup.py --quiet build --build-base $(AARCH64) \
	  build_ext --build-temp $(AARCH64)/objects bdist_wheel --skip-build --bdist-dir $(AARCH64)/bdist --dist-dir $(AARCH64)/wheel)
	PATH=$(abspath $(BIN)):$$PATH auditwheel $(if $(V),--verbose,) repair --exclude 'libtorch*.so' --exclude 'libc10*.so' \
	  --wheel-dir dist/aarch64 $(AARCH64)/wheel/*.whl $(if $(V),,2>build/log || { cat build/log; exit 1; })
	$(BIN)/python test/check_wheel.py --skip-alignment dist/aarch64/*.whl

check-wheel: wheel  ## install the wheel in a clean environment and align with it
	$(BIN)/twine check --strict dist/*.whl
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/python test/check_wheel.py dist/*.whl

sdist: $(TOOLS)  ## build dist/*.tar.gz, the source distribution
	$(call quietly,$(BIN)/python -m build --no-isolation --sdist)

check-sdist: wheel sdist  ## build the source distribution alone, and compare its wheel with that of the tree
	$(BIN)/python test/check_sdist.py dist/*.tar.gz dist/*.whl

release-check:  ## say what VERSION=1.2.3 lacks before it can be published
	$(PYTHON) test/check_release.py "$$VERSION"

cuda-compile: $(TOOLS)  ## compile the CUDA kernels for every architecture; needs nvcc, but no GPU
	$(BIN)/python test/check_cuda_compile.py $(ARGS)

cuda-cycles: $(TOOLS)  ## estimate what a frame of the CUDA sweep costs; needs nvcc and nvdisasm, but no GPU
	$(BIN)/python benchmarks/cuda_cycles.py $(ARGS)

instructions: build wheel-aarch64  ## count the instructions of an alignment, NEON's under emulation; needs qemu-aarch64
	$(BIN)/python benchmarks/instructions.py $(ARGS)

bench bench-long bench-plot gpu: OUT ?= docs/measurements
bench bench-long: export CTC_ALIGN_CEILING ?= build/ceiling
bench: build build/ceiling build/ceiling-avx2  ## measure the CPU kernel, and peers if there are any (benchmarks/README.md); OUT=directory
	$(BIN)/python benchmarks/cpu.py --out $(OUT) $(ARGS)

bench-long: build build/ceiling build/ceiling-avx2  ## measure an hour and ten hours of speech; OUT=directory
	$(BIN)/python benchmarks/cpu.py --long --out $(OUT) $(ARGS)

bench-plot: $(TOOLS)  ## draw what bench and bench-long have measured
	$(BIN)/python benchmarks/plot.py $(ARGS) $(OUT)

# Not in .venv: a machine with a GPU has its own torch, and often no way to fetch another.
gpu:  ## on a machine with a GPU and nvcc: build, test and measure, in ten minutes; OUT=directory
	$(PYTHON) benchmarks/gpu.py --out $(OUT) $(ARGS)

clean:  ## remove what was built; .venv stays
	rm -rf build dist *.egg-info torch_ctc_align/*.so

$(TOOLS): requirements-dev.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: $(PYTHON) is missing or older than 3.10; make PYTHON=... picks another" >&2; exit 1; }
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: $(PYTHON) cannot make virtual environments; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	command -v "$${CXX:-c++}" >/dev/null || \
	  { echo "error: no C++ compiler $${CXX:-c++}; on Debian or Ubuntu: apt install g++" >&2; exit 1; }
	echo "Setting up $(VENV); the first time this fetches torch and takes some minutes"
	$(PYTHON) -m venv $(VENV)
	$(call install,$(VENV)) -r requirements-dev.txt && echo "Set up $(VENV) in $$SECONDS s"
	touch $@

$(EXAMPLES): examples/requirements.txt | $(TOOLS)
	$(call install,$(VENV)) -r $<
	touch $@

$(DOCS): docs/requirements.txt | $(TOOLS)
	$(call install,$(VENV)) -r $<
	touch $@

$(CLIENTS_READY): test/requirements-clients.txt test/requirements-clients-alone.txt test/clients_environment.py
	echo "Setting up $(CLIENTS), 1.4 GB with the CPU build of torch; the first time this takes some minutes"
	$(PYTHON) -m venv $(CLIENTS)
	$(call install,$(CLIENTS)) -r test/requirements-clients.txt
	$(call install,$(CLIENTS)) --no-deps --no-build-isolation -r test/requirements-clients-alone.txt
	$(CLIENTS)/bin/python test/clients_environment.py $(CLIENTS)/stubs
	touch $@

$(CORPORA_READY): test/requirements-corpora.txt
	echo "Setting up $(CORPORA), 1.7 GB with the CPU build of torch; the first time this takes some minutes"
	$(PYTHON) -m venv $(CORPORA)
	$(call install,$(CORPORA)) -r $<
	touch $@

$(TORCHES)/%/.ready: test/requirements-torch-%.txt
	echo "Setting up $(@D), several GB with CUDA's libraries; the first time this takes some minutes"
	$(PYTHON) -m venv $(@D)
	$(call install,$(@D)) -r $<
	touch $@

$(AARCH64_TORCH)/.ready: | $(TOOLS)
	echo "Fetching torch for aarch64, 146 MB"
	$(BIN)/python -m pip --disable-pip-version-check --quiet download --dest $(@D) --no-deps --only-binary :all: \
	  --platform manylinux_2_28_aarch64 --python-version 3.11 torch==2.10.0
	for name in c10 torch torch_cpu; do $(BIN)/python -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extract(*sys.argv[2:])' \
	  $(@D)/torch-*.whl torch/lib/lib$$name.so $(@D) || exit; done
	rm $(@D)/torch-*.whl
	touch $@

build/ceiling: benchmarks/ceiling.cpp $(NATIVE)
	mkdir -p $(@D)
	$${CXX:-c++} -std=c++20 -O3 -march=native -ffp-contract=off -w $< -o $@

# That of a processor without AVX-512. (Where there is no AVX2 either, it is the same program.)
build/ceiling-avx2: benchmarks/ceiling.cpp $(NATIVE)
	mkdir -p $(@D)
	$${CXX:-c++} -std=c++20 -O3 -march=native $(if $(filter x86_64,$(shell uname -m)),-mno-avx512f) -ffp-contract=off -w $< -o $@

$(BUILT): $(NATIVE) $(TOOLS)
	$(call quietly,$(BIN)/python setup.py --quiet build_ext --inplace) && echo "Built in $$SECONDS s"
	touch $@

# Makes the package importable from anywhere, and its command. (pip install -e would compile all of it a second time.)
$(LINKED): $(TOOLS)
	$(BIN)/python -c 'import os, sysconfig; \
	  open(sysconfig.get_path("purelib") + "/torch_ctc_align.pth", "w").write(os.getcwd() + "\n")'
	printf '#!%s\nfrom torch_ctc_align.speech.command import main\nraise SystemExit(main())\n' \
	  $(abspath $(BIN))/python > $(BIN)/ctc-align
	chmod +x $(BIN)/ctc-align
	touch $@
