"""What comes from the environment and `.env`: keys, addresses, places. Reads, never writes; holds no defaults of algorithms."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dotenv import load_dotenv

from memfactory.common.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Settings:
    """The variables of `.env.example`; an unset variable is None."""

    openai_api_key: str | None
    openai_base_url: str | None
    llm_model: str | None
    llm_options: str | None
    swanlab_api_key: str | None
    embedding_api_key: str | None
    embedding_base_url: str | None
    embedding_model: str | None
    embedding_dim: int | None
    neo4j_uri: str | None
    neo4j_user: str | None
    neo4j_password: str | None
    milvus_uri: str | None
    milvus_user: str | None
    milvus_password: str | None
    memfactory_today: str | None


def load_settings(path: Path | None = None) -> Settings:
    """Read `.env` (of the working directory, unless `path` is given) under the environment, which wins."""
    file = path or Path.cwd() / ".env"
    try:
        load_dotenv(file, override=False)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text: {error}. Save it as UTF-8.") from error
    values: dict[str, str | int | None] = {}
    for name in Settings.__slots__:
        text = os.environ.get(name.upper(), "").strip() or None
        if text and name == "embedding_dim" and not text.isdecimal():
            raise ConfigError(f"EMBEDDING_DIM is {text!r}: it must be a whole number, such as 1024.")
        values[name] = int(text) if text and name == "embedding_dim" else text
    return Settings(**values)  # type: ignore[arg-type]
