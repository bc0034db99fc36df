"""Texts as vectors whose inner product says how alike they are: hashed n-grams by default, a model or a server by choice.

An embedder is a pure function of a text: nothing is drawn at random, so equal texts are always equally near. `embed` is
synchronous; a coroutine that asks one that `waits` hands it to a thread. Knows no bank and no item.
"""

from __future__ import annotations

import inspect
import math
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from memfactory.common.bounded_http import client
from memfactory.common.errors import ConfigError, InfrastructureError, in_one_line, unknown_name
from memfactory.common.files import read_json
from memfactory.common.processes import INHERITED, tell_of_forks
from memfactory.common.redaction import learn, without_login
from memfactory.common.refusals import no_quota
from memfactory.common.registry import EMBEDDER_REGISTRY
from memfactory.common.settings import load_settings
from memfactory.common.version import install
from memfactory.common.words import content_of

Vectors = NDArray[np.float32]


class Embedder(Protocol):
    """What search needs of an embedder."""

    name: str
    """Names the function, its settings included: two embedders of one name give the same vectors."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Texts [n] -> float32 [n, d] with rows of length 1; a text in which there is nothing to see is a row of zeros."""
        ...


def make_embedder(choice: str | Mapping[str, Any]) -> Embedder:
    """The embedder of a key of EMBEDDER_REGISTRY, or of `{"type": key, option: value}`; an unknown option names the known ones."""
    if not isinstance(choice, (str, Mapping)):
        raise ConfigError(f'An embedder is a name or {{"type": name, option: value}}, not {choice!r:.80}.')
    options = {"type": choice} if isinstance(choice, str) else dict(choice)
    name = options.pop("type", "hashed")
    make = EMBEDDER_REGISTRY.get(name)
    parameters = inspect.signature(make).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    for option in options if len(known) == len(parameters) else ():
        if option not in known:
            raise unknown_name(f"option of the embedder {name!r}", option, known)
    try:
        return make(**options)
    except TypeError as error:
        raise ConfigError(f"The embedder {name!r} cannot be made with {options!r:.200}: {error}") from error


def kept_as(embedder: Embedder) -> str:
    """What a store notes of who made its vectors: the name, and the version if there was an earlier one."""
    version = getattr(embedder, "version", 1)
    return embedder.name if version == 1 else f"{embedder.name} version {version}"


def unit_rows(rows: NDArray[Any]) -> Vectors:
    """Rows [n, d] scaled to length 1, as float32; a row of zeros stays one."""
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


@EMBEDDER_REGISTRY.register("hashed")
class HashedEmbedder:
    """Signed hashes of words, word pairs and character n-grams (feature hashing, Weinberger et al., 2009, arXiv 0902.2206).

    Lexical: texts are near if they share words, or pieces of words. The same on every machine: MurmurHash3, no random number.
    """

    waits = False
    version = 2
    """Of one name: what a store holds from an earlier one, which differs in other texts than ASCII, is embedded anew."""

    def __init__(self, *, dim: int = 2048, word_share: float = 0.3) -> None:
        """`dim`: numbers per vector, half for words and half for characters. `word_share`: how much of the cosine is the words'."""
        # Costs half a second, which only those who search should pay.
        from sklearn.feature_extraction.text import HashingVectorizer

        if dim < 2 or dim % 2 or not 0 <= word_share <= 1:
            raise ConfigError(f"hashed needs an even dim of 2 or more and word_share in [0, 1], got {dim} and {word_share}.")
        self.name = f"hashed:{dim}:{word_share:g}"
        common = {"n_features": dim // 2, "norm": "l2", "lowercase": False, "dtype": np.float32}
        words = HashingVectorizer(analyzer="word", ngram_range=(1, 2), tokenizer=str.split, token_pattern=None, **common)
        characters = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), **common)
        self._parts = ((words, word_share**0.5), (characters, (1 - word_share) ** 0.5))

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Texts [n] -> [n, dim]; a text without a letter or digit is a row of zeros."""
        if not texts:
            return np.zeros((0, 2 * self._parts[0][0].n_features), np.float32)
        plain = [content_of(text) for text in texts]
        return unit_rows(np.hstack([vectorizer.transform(plain).toarray() * weight for vectorizer, weight in self._parts]))


@EMBEDDER_REGISTRY.register("sentence_transformers")
class SentenceTransformersEmbedder:
    """A sentence-transformers model (Reimers and Gurevych, 2019, arXiv 1908.10084), run here. Needs the extra of that name."""

    waits = True  # a model's forward pass is long enough

    def __init__(self, *, model: str = "sentence-transformers/all-MiniLM-L6-v2", device: str = "cpu", batch_size: int = 64) -> None:
        """`model`: a hub name or a folder. A missing library or model raises `ConfigError`."""
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ConfigError(
                f"The embedder 'sentence_transformers' needs a library that is not installed ({error}). "
                f"{install('sentence-transformers')}; or choose the embedder hashed."
            ) from error
        _refuse_own_code(model)
        try:
            self._model = SentenceTransformer(model, device=device, trust_remote_code=False)
        except OSError as error:
            raise ConfigError(f"No sentence-transformers model at {model!r}: {in_one_line(error)}. Give a hub name or a folder.") from error
        self.name = f"sentence_transformers:{model}"
        self._batch_size = batch_size

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Texts [n] -> [n, d], d being the model's."""
        asked = list(texts) or [""]
        rows = self._model.encode(asked, batch_size=self._batch_size, show_progress_bar=False, convert_to_numpy=True)
        seen = np.array([[bool(text.strip())] for text in asked])
        return unit_rows(np.asarray(rows) * seen)[: len(texts)]


def _refuse_own_code(model: str) -> None:
    """A folder's modules.json names classes, and sentence-transformers imports them from the folder itself, whatever it is told."""
    listed = Path(model).expanduser() / "modules.json"
    rows = read_json(listed) if listed.is_file() else []
    for named in (str(row.get("type")) if isinstance(row, dict) else str(row) for row in rows):
        if not named.startswith("sentence_transformers."):
            raise ConfigError(
                f"{listed} names {named!r}, code that sentence-transformers does not have: it is never run. Use another model."
            )


@EMBEDDER_REGISTRY.register("openai")
class OpenAIEmbedder:
    """An OpenAI-compatible embeddings server. What is not given comes from EMBEDDING_* in the environment or `.env`.

    A server that fails, stalls or answers with something else raises `InfrastructureError`, after retries; a refused key or
    name, or a dimension other than EMBEDDING_DIM, can only fail again and raises `ConfigError`.
    """

    waits = True

    def __init__(
        self, *, model: str | None = None, base_url: str | None = None, api_key: str | None = None, dim: int | None = None,
        batch_size: int = 64, timeout: float = 60.0, max_retries: int = 5,
    ) -> None:  # fmt: skip
        """`dim`: the dimension that the server must give; `batch_size`: texts per request; `timeout`: seconds of one try."""
        import openai  # not above: importing it takes half a second, and the default embedder calls no server

        settings = load_settings()
        self.model = model or settings.embedding_model or ""
        self.base_url = base_url or settings.embedding_base_url
        self.dim = dim or settings.embedding_dim
        key = api_key or settings.embedding_api_key
        learn({"api_key": key, "base_url": self.base_url})
        if not self.model:
            raise ConfigError("The embedder 'openai' names no model. Set EMBEDDING_MODEL in .env, or give `model`.")
        if key is None and self.base_url is None:
            raise ConfigError(
                "The embedder 'openai' needs EMBEDDING_API_KEY, or EMBEDDING_BASE_URL for a server without keys. Set them in .env."
            )
        self.name = f"openai:{self.model}@{without_login(self.base_url or 'api.openai.com')}"
        self._batch_size = batch_size
        self._make = partial(
            openai.OpenAI, api_key=key or "none", base_url=self.base_url, timeout=timeout, max_retries=max_retries,
        )  # fmt: skip
        self._timeout = timeout
        self._connect()
        tell_of_forks(self)

    def _connect(self) -> None:
        self._client = self._make(http_client=client(self._timeout, {"response": [_not_again]}))
        self._end = weakref.finalize(self, self._client.close)

    def _forked(self) -> None:
        """In a forked child: the connections are the parent's."""
        self._end.detach()
        INHERITED.append(self._client)
        self._connect()

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Texts [n] -> [n, d]. Blank texts are not sent (servers refuse them): they are rows of zeros."""
        filled = [at for at, text in enumerate(texts) if text.strip()]
        batches = [filled[at : at + self._batch_size] for at in range(0, len(filled), self._batch_size)]
        found = [row for batch in batches for row in self._ask([texts[at] for at in batch])]
        if len({len(row) for row in found}) > 1:
            raise InfrastructureError(f"{self.name} gave vectors of different lengths.")
        rows = np.zeros((len(texts), len(found[0]) if found else self.dim or 0))
        if found:
            rows[filled] = found
        return unit_rows(rows)

    def _ask(self, texts: list[str]) -> list[list[float]]:
        """One request: the vectors in the order of the texts."""
        import openai

        try:
            reply = self._client.embeddings.create(model=self.model, input=texts, encoding_format="float")
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise ConfigError(
                f"{self.name} refused the key ({in_one_line(error)}). Set EMBEDDING_API_KEY in .env or the environment."
            ) from error
        except openai.NotFoundError as error:
            raise ConfigError(
                f"{self.name}: no such model or address ({in_one_line(error)}). Check EMBEDDING_MODEL and EMBEDDING_BASE_URL."
            ) from error
        except openai.RateLimitError as error:
            if no_quota(str(error)):
                raise ConfigError(
                    f"{self.name} has no quota left ({in_one_line(error)}). Add credit there, or name another model or key."
                ) from error
            raise InfrastructureError(f"{self.name} refused for its rate limit: {in_one_line(error)}") from error
        except (openai.OpenAIError, ValueError, RecursionError) as error:  # a body that is not JSON, too deep, or without data
            raise InfrastructureError(f"{self.name} failed: {in_one_line(error)}") from error
        data = getattr(reply, "data", None)
        by_index = {getattr(entry, "index", None): getattr(entry, "embedding", None) for entry in data or ()}
        rows: list[list[float]] = [row for at in range(len(texts)) if (row := by_index.get(at)) is not None and _is_vector(row)]
        if len(rows) != len(texts):
            raise InfrastructureError(f"{self.name} answered {len(texts)} texts with {len(rows)} vectors of numbers: {reply!r:.200}")
        if self.dim and any(len(row) != self.dim for row in rows):
            raise ConfigError(
                f"{self.name} gives vectors of {len(rows[0])} numbers, not {self.dim}. Set EMBEDDING_DIM to what the model gives."
            )
        return rows


def _not_again(response: Any) -> None:
    """Tell the client not to repeat a request for which the account has no money."""
    if response.status_code == 429 and no_quota(response.read().decode(errors="replace")):
        response.headers["x-should-retry"] = "false"


def _is_vector(row: Any) -> bool:
    return isinstance(row, list) and bool(row) and all(isinstance(x, (int, float)) and math.isfinite(x) for x in row)


class CachedEmbedder:
    """An embedder that is asked once for each text. May be used from several threads.

    Holds the `max_entries` newest texts, by content; only texts that are not held go on, in one call.
    """

    def __init__(self, embedder: Embedder, *, max_entries: int = 20_000) -> None:
        if max_entries < 1:
            raise ConfigError(f"max_entries must be at least 1, got {max_entries}.")
        self.name = embedder.name
        self.version: int = getattr(embedder, "version", 1)
        self.waits = getattr(embedder, "waits", False)
        """True if the embedder waits for more than this process's arithmetic: a coroutine then hands it to a thread."""
        self._embedder, self._max = embedder, max_entries
        self._rows: dict[str, Vectors] = {}
        self._lock = threading.Lock()
        tell_of_forks(self)

    def _forked(self) -> None:
        self._lock = threading.Lock()  # a thread of the parent may hold it

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Texts [n] -> [n, d], the rows that the embedder gives."""
        with self._lock:
            rows = {text: self._rows[text] for text in texts if text in self._rows}
        missing = [text for text in dict.fromkeys(texts) if text not in rows]
        if missing or not texts:
            fresh = self._embedder.embed(missing)
            if not texts:
                return fresh
            rows |= zip(missing, fresh, strict=True)
            self._keep(missing, fresh)
        return np.stack([rows[text] for text in texts])

    def _keep(self, texts: Iterable[str], rows: Vectors) -> None:
        with self._lock:
            # Copies: a row that is a view would keep its whole batch in memory.
            self._rows |= {text: row.copy() for text, row in zip(texts, rows, strict=True)}
            for text in list(self._rows)[: max(len(self._rows) - self._max, 0)]:
                del self._rows[text]
