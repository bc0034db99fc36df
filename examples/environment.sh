# Sourced by the scripts: `use_python` chooses an interpreter, `install FILE` installs a requirements file, `train` trains. An
# environment that is active is used (conda's `base` is not); otherwise .venv is made.

use_python() {
    # [--make [FOLDER]]: make the environment where there is none.
    local folder="${2:-.venv}"
    if [ -n "${VIRTUAL_ENV:-}" ] || { [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != "base" ]; }; then
        return
    fi
    if [ "${1:-}" = "--make" ] && ! "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
        local python="${PYTHON:-python3}"
        if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "Error: $python is missing or older than 3.10. Name a newer one: PYTHON=python3.12 bash $0" >&2
            exit 2
        fi
        # --clear: a half-made environment (a Debian without python3-venv leaves one) must not be kept.
        "$python" -m venv --clear "$folder" ||
            { echo "Error: could not make $folder. On Debian or Ubuntu: apt install python3-venv" >&2; exit 2; }
    fi
    if [ -f "$folder/bin/activate" ]; then
        # shellcheck disable=SC1091
        source "$folder/bin/activate"
    fi
}

install() {
    _install "$1" -r requirements.txt -r "$1"
}

install_vllm() {
    # The package's own needs in the versions of requirements.txt, but for transformers; last what brings none of its own.
    _install requirements-vllm.txt -r <(grep -v '# alone$' requirements-vllm.txt) . \
        -c <(grep -v '^transformers==' requirements.txt) -c <(grep '^pytest==' requirements-test.txt) -- \
        -r <(grep '# alone$' requirements-vllm.txt)
}

_install() {
    # FILE WORDS... [-- WORDS...]: once, `pip install WORDS`, and without dependencies those after the dashes.
    local file="$1" prefix stamp wanted words=()
    shift
    prefix="$(python -c 'import sys; print(sys.prefix)')"
    stamp="$prefix/.memfactory-$(basename "$file")"
    wanted="$(pwd) ${TORCH_INDEX_URL:-} $(cat requirements.txt "$file" pyproject.toml | cksum)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    echo "Installing $file into $prefix (once; some minutes)"
    local pip=(python -m pip install --quiet --disable-pip-version-check)
    # torch first and pinned: any other order can pull another build of it.
    "${pip[@]}" "$(grep '^torch==' requirements.txt)" ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
    while [ $# -gt 0 ] && [ "$1" != "--" ]; do
        words+=("$1")
        shift
    done
    "${pip[@]}" "${words[@]}"
    python -m pip uninstall --quiet --yes memfactory >/dev/null 2>&1 || true  # another project of that name would be imported instead
    "${pip[@]}" --no-deps -e . "${@:2}"
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
