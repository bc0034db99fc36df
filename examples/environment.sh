# Sourced by the scripts: a Python environment with the named requirements. Makes .venv unless one is active; installs
# only when a requirements file or torch's index changed since the last time.
if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
    [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
    # shellcheck disable=SC1091
    source .venv/bin/activate
fi
stamp="$(python -c 'import sys; print(sys.prefix)')/.memfactory-$(basename "$1")"
wanted="$(pwd) $(cat requirements.txt "$1" pyproject.toml | cksum)"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing $1 into $(python -c 'import sys; print(sys.prefix)') (once; some minutes)"
    # torch first and pinned: any other order can pull another build of it.
    python -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' requirements.txt)" ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
    python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r "$1"
    python -m pip install --quiet --disable-pip-version-check --no-deps -e .
    echo "$wanted" > "$stamp"
fi
