"""`memfactory data fetch`: the published data sets, from the Hugging Face hub into a folder, whole or not at all.

Knows which files there are; what is in them, the loaders know.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import HTTPError

from memfactory.common.errors import MissingFileError, unknown_name
from memfactory.common.flags import option

MEMFACTORY, MEMAGENT = "nworats/MemFactory", "BytedTsinghua-SIA/hotpotqa"


@dataclass(frozen=True, slots=True)
class Published:
    """A file of a hub data set, what it holds, and the command of ours that makes one like it without a network."""

    repository: str
    file: str
    about: str
    stand_in: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """Where a file lies now, and whether it lay there before."""

    path: Path
    already_there: bool


@dataclass
class FetchConfig:
    """Options of `memfactory data fetch`."""

    folder: str = option("datas", "Where the file goes.")


def _stand_in(docs: int, number: int = 128, ending: str = "json") -> str:
    return f"memfactory data build synth_hop --docs {docs} --number {number} --output datas/synth_hop_{docs}.{ending}"


_FWE = "memfactory data build fwe --tokens 16384 --tokenizer models/Qwen3-1.7B --output datas/eval_fwe_16384.json"

PUBLISHED: dict[str, Published] = {
    "converted_hotpotqa_2000": Published(
        MEMFACTORY, "converted_hotpotqa_2000.json", "2,000 training questions over 50 to 80 documents", _stand_in(64, 2000)
    ),
    "eval_50": Published(MEMFACTORY, "eval_50.json", "128 questions over 50 documents", _stand_in(50)),
    "eval_100": Published(MEMFACTORY, "eval_100.json", "128 questions over 100 documents", _stand_in(100)),
    "eval_fwe_16384": Published(MEMFACTORY, "eval_fwe_16384.json", "frequent words in 16,384 tokens", _FWE),
    **{
        f"memagent/eval_{docs}": Published(
            MEMAGENT, f"eval_{docs}.json", f"MemAgent's 128 questions over {docs} documents", _stand_in(docs)
        )
        for docs in (50, 100, 200, 400, 800, 1600, 3200, 6400)
    },
    "memagent/train": Published(
        MEMAGENT, "hotpotqa_train_32k.parquet", "MemAgent's training questions over 200 documents", _stand_in(200, 2000, "parquet")
    ),
    "memagent/dev": Published(MEMAGENT, "hotpotqa_dev.parquet", "MemAgent's checks during training", _stand_in(200, 128, "parquet")),
}
"""By the name to fetch it by. Both repositories have an `eval_50.json`; MemAgent's files go into a folder of their own."""


def fetch(name: str, folder: str | Path = "datas") -> Fetched:
    """Fetch a published file into `folder`, unless it is there; a failure is one error that says what to do without a network."""
    if name.endswith((".json", ".parquet")) and (stem := name.rpartition(".")[0]) in PUBLISHED:
        name = stem
    if name not in PUBLISHED:
        raise unknown_name("published data set", name, PUBLISHED)
    published = PUBLISHED[name]
    home = Path(folder).expanduser() / ("memagent" if published.repository == MEMAGENT else "")
    path = home / published.file
    if path.exists():
        return Fetched(path, already_there=True)
    # Beside its goal, so that the last step is a rename. What an interrupted download has got stays there for the next try.
    part = home / f".fetch_{published.file}"
    try:
        part.mkdir(parents=True, exist_ok=True)
        got = hf_hub_download(published.repository, published.file, repo_type="dataset", local_dir=part)
        os.replace(got, path)
        shutil.rmtree(part, ignore_errors=True)
    except (HTTPError, OSError) as error:
        if not any(file.is_file() and file.stat().st_size for file in part.rglob("*.incomplete")):
            shutil.rmtree(part, ignore_errors=True)
        raise MissingFileError(_advice(published, home, error)) from error
    return Fetched(path, already_there=False)


def _advice(published: Published, home: Path, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if constants.HF_HUB_OFFLINE:  # the hub has the same words for this as for a lost connection
        reason = "HF_HUB_OFFLINE is set"
    return (
        f"{published.file} of the hub data set {published.repository} could not be fetched ({reason}). Where there is a network: "
        f"`hf download {published.repository} {published.file} --repo-type dataset --local-dir {home}`. "
        f"Offline, a look-alike is made by `{published.stand_in}`."
    )
