# Sourced by the scripts: `use_python` chooses an interpreter, `install FILE` installs a requirements file, `train` trains. An
# environment that is active is used (conda's `base` is not); otherwise .venv is made.

use_python() {
    if [ -n "${VIRTUAL_ENV:-}" ] || { [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != "base" ]; }; then
        return
    fi
    if [ "${1:-}" = "--make" ] && ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        local python="${PYTHON:-python3}"
        if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "Error: $python is missing or older than 3.10. Name a newer one: PYTHON=python3.12 bash $0" >&2
            exit 2
        fi
        # --clear: a half-made .venv (a Debian without python3-venv leaves one) must not be kept.
        "$python" -m venv --clear .venv || { echo "Error: could not make .venv. On Debian or Ubuntu: apt install python3-venv" >&2; exit 2; }
    fi
    if [ -f .venv/bin/activate ]; then
        # shellcheck disable=SC1091
        source .venv/bin/activate
    fi
}

install() {
    local prefix stamp wanted
    prefix="$(python -c 'import sys; print(sys.prefix)')"
    stamp="$prefix/.memfactory-$(basename "$1")"
    wanted="$(pwd) ${TORCH_INDEX_URL:-} $(cat requirements.txt "$1" pyproject.toml | cksum)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    echo "Installing $1 into $prefix (once; some minutes)"
    # torch first and pinned: any other order can pull another build of it.
    python -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' requirements.txt)" ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
    python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r "$1"
    python -m pip install --quiet --disable-pip-version-check --no-deps -e .
    echo "$wanted" > "$stamp"
}

train() {
    # memfactory train with these flags, in the chosen environment.
    use_python
    local python="${PYTHON:-$(command -v python || command -v python3)}"
    (cd / && "$python" -c 'import memfactory') 2>/dev/null || {
        echo "Error: memfactory is not installed for $python. Run: bash examples/quickstart.sh (or pip install -e .)" >&2
        exit 2
    }
    exec "$python" examples/train_mem_grpo.py "$@"
}
