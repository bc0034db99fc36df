"""`memfactory data build`: make a data set with a generator, check it, and write it whole or not at all.

Knows which options there are and how files end; the generators know what is in the records.
"""

from __future__ import annotations

import inspect
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import AutoTokenizer

import memfactory.data.generators.niah
import memfactory.data.generators.ruler
import memfactory.data.generators.synth_dialog
import memfactory.data.generators.synth_facts
import memfactory.data.generators.synth_hop
import memfactory.data.generators.synth_topics
import memfactory.data.hotpotqa
import memfactory.data.memory_r1
import memfactory.data.squad_qa  # noqa: F401 - these imports register the generators
from memfactory.common.errors import ConfigError, MissingFileError, unknown_name
from memfactory.common.files import looks_local, write_text
from memfactory.common.flags import mapping_of, option
from memfactory.common.progress import Lines
from memfactory.common.ranges import check_ranges
from memfactory.common.registry import GENERATOR_REGISTRY
from memfactory.data.audit import Audit, audit
from memfactory.data.dialog_forms import in_form
from memfactory.data.dialog_rules import audit_dialogues, is_dialogue
from memfactory.data.folder import DataFolder, FolderReport, folder_path, makes_folder, write_folder
from memfactory.data.parquet import read_parquet, require_pyarrow, training_row, write_parquet

ENDINGS = (".json", ".jsonl", ".parquet")
Record = dict[str, Any]


@dataclass
class BuildConfig:
    """Options of `memfactory data build`. What is left at None, False or empty has the generator's own default."""

    name: str | None = option(None, "Which data set: a key of GENERATOR_REGISTRY, as `memfactory list` shows them. Required.")
    output: str | None = option(
        None, "File to write: .json, .jsonl, or .parquet for MemAgent's training schema; memory-r1: a folder. Required."
    )
    number: int = option(128, "How many records.", least=1)
    seed: int = option(0, "Seed of every random stream; record i depends on (seed, i) and not on --number.", least=0)
    docs: int | None = option(None, "Documents in a text (synth_hop, hotpotqa).", least=1)
    tokens: int | None = option(None, "Length in tokens of text, question and answer together (niah, vt, cwe, fwe, qa).", least=1)
    tokenizer: str = option("models/tiny", "Folder or hub name of the tokenizer that --tokens are counted with.")
    source: list[str] = option([], "Files to build from (hotpotqa, qa, memory-r1).", "--from")
    variant: str | None = option(None, "Which form of the task (niah: single_1 ... multiquery).")
    form: str = option("dialogue", "Form of a dialogue in the file: dialogue, memory_bank or longmemeval (synth_dialog).")
    legacy_shuffle: bool = option(False, "Order the documents of all items alike, as MemAgent's script does (hotpotqa); leaks places.")
    options: str = option("{}", "Further options of the generator as JSON, such as '{\"chains\": 3}' for vt.")
    plugins: list[str] = option([], "Python files or modules that register your own generators.", "--import")
    overwrite: bool = option(False, "Replace an output file that has other content.")

    def __post_init__(self) -> None:
        check_ranges(type(self), vars(self))


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What `build` made."""

    path: Path
    number: int
    unit: str
    """tokens, documents, words, turns, sessions or memories: what `mean`, `least` and `most` count in a record."""
    mean: float
    least: int
    most: int
    audit: Audit
    written: bool
    """False if the file was there already with the same content."""
    seconds: float

    def rows(self) -> list[tuple[str, str]]:
        """(label, value) pairs for a table."""
        checks = self.audit
        rows = [
            ("file", f"{self.path}{'' if self.written else ' (unchanged)'}"),
            ("records", str(self.number)),
            (f"{self.unit} a record", f"{self.mean:.1f} ({self.least} to {self.most})"),
            ("guessed without the text", f"{checks.guess:.1%}" + ("" if checks.chance is None else f" (chance {checks.chance:.1%})")),
            ("answer follows from the text", "no rule" if checks.oracle is None else f"{checks.oracle:.1%}"),
            ("evidence evenly spread", "not measured" if checks.gold_p is None else f"p={checks.gold_p:.3g}"),
            ("seconds", f"{self.seconds:.1f}"),
        ]
        return rows + [("problem", problem) for problem in checks.problems()]


def build(config: BuildConfig) -> BuildReport | FolderReport:
    """Generate, check and write a data set; a wrong request is refused before anything is generated."""
    start = time.perf_counter()
    if not config.name:
        raise ConfigError(f"Which data set? `memfactory data build NAME --output FILE`; known names: {', '.join(GENERATOR_REGISTRY)}.")
    generator = GENERATOR_REGISTRY.get(config.name)
    several = makes_folder(generator)
    path = folder_path(config.output, config.name) if several else _output(config)
    in_form(config.form, [])
    options = _options(config, generator)
    if several:
        return _build_folder(config, path, generator, options)
    records = generator(config.number, **options)
    # A bar on a terminal only; the shortest builds are over before it would show.
    shown, lines = [], Lines(bar=sys.stderr.isatty())
    for record in tqdm(records, total=config.number, desc=config.name, unit="record", delay=2, leave=False, disable=None):
        shown.append(record)
        lines.tell(f"{config.name}: {len(shown)} of {config.number} records")
    dialogues = all(map(is_dialogue, shown))
    if config.form != BuildConfig.form and not dialogues:
        raise ConfigError(f"--form {config.form}: {config.name} makes no dialogues. synth_dialog does.")
    if dialogues and path.suffix == ".parquet":
        raise ConfigError(f"--output {config.output}: parquet has MemAgent's schema, which dialogues do not fit. Use .json or .jsonl.")
    checks = audit_dialogues(shown) if dialogues else audit(config.name, shown)
    shown = in_form(config.form, shown)
    written = _write(path, shown, config)
    unit, lengths = _lengths(shown)
    mean = sum(lengths) / len(lengths)
    return BuildReport(path, len(shown), unit, mean, min(lengths), max(lengths), checks, written, time.perf_counter() - start)


def _build_folder(config: BuildConfig, path: Path, generator: Callable[..., DataFolder], options: dict[str, Any]) -> FolderReport:
    start = time.perf_counter()
    for name in ("number", "form"):
        if getattr(config, name) != getattr(BuildConfig, name):
            raise ConfigError(f"--{name} {getattr(config, name)}: {config.name} makes fixed files, so leave this option out.")
    folder = generator(**options)
    return FolderReport(path, folder, write_folder(path, folder, config.overwrite), time.perf_counter() - start)


def token_counter(name: str) -> Callable[[str], int]:
    """A function that counts tokens of a text, without special tokens, with the tokenizer of a folder or a hub name."""
    folder = Path(name).expanduser()
    advice = "models/tiny ships with the project; name a folder that holds a tokenizer, or a hub name (OWNER/NAME)."
    # A path that is not there is no hub name: asking the hub for it would take half a minute without a network.
    if not folder.exists() and looks_local(name):
        raise MissingFileError(f"--tokenizer {name!r}: no such folder. {advice}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder) if folder.exists() else name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise MissingFileError(f"--tokenizer {name!r} could not be loaded: {str(error).splitlines()[0]} {advice}") from error
    # `verbose` would warn of texts longer than the model's window, which is what is asked for here.
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _output(config: BuildConfig) -> Path:
    if not config.output:
        raise ConfigError(f"Where to? Give --output FILE, ending in {', '.join(ENDINGS)}; for example datas/{config.name}.json.")
    path = Path(config.output).expanduser()
    if path.suffix not in ENDINGS:
        raise ConfigError(
            f"--output {config.output}: the ending {path.suffix or 'of this name'!r} is unknown. Known: {', '.join(ENDINGS)}."
        )
    if path.is_dir():
        raise ConfigError(f"--output {config.output} is a folder. Give a file in it, such as {path / 'data.json'}.")
    if path.suffix == ".parquet":
        require_pyarrow()
    path.parent.mkdir(parents=True, exist_ok=True)  # a place that cannot be written to is known before the work
    return path


def _options(config: BuildConfig, generator: Callable[..., Any]) -> dict[str, Any]:
    """The keyword arguments of the generator: what was given, and what it needs from here."""
    parameters = {p.name: p for p in inspect.signature(generator).parameters.values() if p.kind == p.KEYWORD_ONLY}
    untouched = BuildConfig()
    given = {
        name: getattr(config, name)
        for name in ("seed", "docs", "tokens", "source", "variant", "legacy_shuffle")
        if getattr(config, name) != getattr(untouched, name)
    }
    given |= mapping_of("options", config.options)
    taken = [name for name in parameters if name != "count"] + (["tokenizer"] if "count" in parameters else [])
    asked = [*given, *(["tokenizer"] if config.tokenizer != untouched.tokenizer else [])]
    for name in asked:
        if name not in taken:
            raise unknown_name(f"option of {config.name}", name, taken, "`memfactory list` shows the options of each generator.")
    for name, value in given.items():
        _check_type(name, value, parameters[name].default)
    if "source" in parameters and not given.get("source"):
        raise ConfigError(f"{config.name} is built from files: give --from FILE, for example --from hotpot_dev_distractor_v1.json.")
    return given | ({"count": token_counter(config.tokenizer)} if "count" in parameters else {})


def _check_type(name: str, value: Any, default: Any) -> None:
    kinds: tuple[type, ...] = (
        (int, float) if isinstance(default, float) else (list, tuple) if isinstance(default, tuple) else (type(default),)
    )
    if default is None or default is inspect.Parameter.empty:
        return
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ConfigError(f"{name}={value!r} must be of the type of its default, {default!r}.")


def _lengths(records: Sequence[Record]) -> tuple[str, list[int]]:
    for key, unit in (("length", "tokens"), ("num_docs", "documents")):
        if all(key in record for record in records):
            return unit, [record[key] for record in records]
    for key, unit in (("haystack_sessions", "sessions"), ("M", "memories")):
        if all(key in record for record in records):
            return unit, [len(record[key]) for record in records]
    if all(map(is_dialogue, records)):
        return "turns", [sum(len(session["turns"]) for session in record["sessions"]) for record in records]
    return "words", [len(record["context"].split()) for record in records]


def _write(path: Path, records: Sequence[Record], config: BuildConfig) -> bool:
    """Write the file unless it is there with this content; another content is replaced only if asked for."""
    text, rows = "", [training_row(record, config.name or "") for record in records] if path.suffix == ".parquet" else []
    if path.suffix != ".parquet":
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        text = "\n".join(lines) + "\n" if path.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]\n"
    if path.exists():
        same = read_parquet(path) == rows if rows else path.read_bytes() == text.encode("utf-8")
        if same:
            return False
        if not config.overwrite:
            raise ConfigError(f"{path} exists with other content. Give another --output, or --overwrite True to replace it.")
    if rows:
        write_parquet(path, rows)
    else:
        write_text(path, text)
    return True
