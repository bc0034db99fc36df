"""The distribution: its version, in the one place where it stands, and how a part that needs more is installed.

The name `memfactory` on the package index is another project's, and empty: only a checkout installs this one.
"""

__version__ = "0.2.0"


def install(extra: str) -> str:
    """The advice to install what an optional part needs: the command, and where it runs."""
    return f'Run, in the checkout of MemFactory: pip install -e ".[{extra}]"'
