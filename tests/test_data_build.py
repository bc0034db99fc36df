"""Promise: `build` writes what the loaders read, whole or not at all, tells what it made, and refuses what cannot be before it starts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser

import memfactory.data.parquet
from memfactory.common.errors import ConfigError, DataError, MissingFileError, UnknownNameError
from memfactory.common.registry import GENERATOR_REGISTRY, describe_options
from memfactory.data.build import BuildConfig, build, token_counter
from memfactory.data.formats import load_longcontext
from memfactory.data.generators.synth_hop import synth_hop
from memfactory.data.parquet import read_parquet

MODEL = str(Path(__file__).parents[1] / "models" / "tiny")


def make(folder: Path, name: str = "synth_hop", output: str = "out.json", **options: Any) -> Any:
    defaults: dict[str, Any] = {"number": 4, "tokenizer": MODEL} if name in ("niah", "vt", "cwe", "fwe") else {"number": 4}
    if name == "synth_hop":
        defaults["docs"] = 10
    return build(BuildConfig(name=name, output=str(folder / output), **(defaults | options)))


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_built_file_is_what_the_loader_reads(tmp_path: Path) -> None:
    report = make(tmp_path, number=5)
    assert report.path == tmp_path / "out.json" and report.written and files(tmp_path) == {"out.json"}
    examples, rows = load_longcontext(report.path), list(synth_hop(5, docs=10))
    assert [(e["context"], e["question"], e["answers"]) for e in examples] == [(r["context"], r["input"], r["answers"]) for r in rows]
    assert [e["extra"] for e in examples] == [{key: row[key] for key in ("num_docs", "index", "evidence")} for row in rows]


def test_endings_decide_the_form(tmp_path: Path) -> None:
    listed, lined = make(tmp_path), make(tmp_path, output="out.jsonl")
    rows = json.loads(listed.path.read_text(encoding="utf-8"))
    assert rows == [json.loads(line) for line in lined.path.read_text(encoding="utf-8").splitlines()] == list(synth_hop(4, docs=10))


def test_the_same_request_makes_the_same_bytes_and_leaves_a_finished_file_alone(tmp_path: Path) -> None:
    first = make(tmp_path)
    content, time = first.path.read_bytes(), first.path.stat().st_mtime_ns
    again = make(tmp_path)
    assert not again.written and first.path.stat().st_mtime_ns == time and first.path.read_bytes() == content
    assert ("file", f"{first.path} (unchanged)") in again.rows()


def test_another_content_is_replaced_only_if_asked_for(tmp_path: Path) -> None:
    before = make(tmp_path).path.read_bytes()
    with pytest.raises(ConfigError, match=r"out.json exists with other content.*--overwrite"):
        make(tmp_path, seed=1)
    assert (tmp_path / "out.json").read_bytes() == before and files(tmp_path) == {"out.json"}
    assert make(tmp_path, seed=1, overwrite=True).written and (tmp_path / "out.json").read_bytes() != before


def test_the_report_tells_lengths_and_checks(tmp_path: Path) -> None:
    report = make(tmp_path, "fwe", number=3, tokens=1500)
    assert (report.unit, report.number) == ("tokens", 3) and 1400 < report.least <= report.mean <= report.most <= 1500
    assert report.audit.oracle == 1.0
    labels = dict(report.rows())
    assert labels["records"] == "3" and labels["answer follows from the text"] == "100.0%" and "problem" not in labels
    assert make(tmp_path, output="hop.json").unit == "documents" and make(tmp_path, "synth_facts", "facts.json").unit == "words"


def test_problems_are_in_the_report(tmp_path: Path) -> None:
    rows = [
        {"question": f"q{n}", "answer": "a", "supporting_facts": [[f"T{n}.0", 0]], "context": [[f"T{n}.{k}", ["x"]] for k in range(10)]}
        for n in range(60)
    ]
    (tmp_path / "source.json").write_text(json.dumps(rows))
    report = make(tmp_path, "hotpotqa", source=[str(tmp_path / "source.json")], docs=50, number=60, legacy_shuffle=True)
    assert any(label == "problem" and "not spread evenly" in text for label, text in report.rows())


def test_parquet_has_memagents_training_schema(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    report = make(tmp_path, output="train.parquet")
    rows = list(synth_hop(4, docs=10))
    assert read_parquet(report.path) == [
        {
            "data_source": "synth_hop",
            "prompt": [{"role": "user", "content": row["input"]}],
            "context": row["context"],
            "ability": "memory",
            "reward_model": {"style": "rule", "ground_truth": row["answers"]},
            "extra_info": {"index": row["index"], "question": row["input"], "num_docs": 10},
        }
        for row in rows
    ]
    assert not make(tmp_path, output="train.parquet").written and files(tmp_path) == {"train.parquet"}
    with pytest.raises(ConfigError, match="exists with other content"):
        make(tmp_path, output="train.parquet", number=5)


def test_parquet_loads_as_the_same_examples_as_json(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for name in ("synth_hop", "vt"):
        options = {"tokens": 1500} if name == "vt" else {}
        listed, packed = (load_longcontext(make(tmp_path, name, f"{name}{ending}", **options).path) for ending in (".json", ".parquet"))
        assert all(len(e["answers"]) == (5 if name == "vt" else 1) for e in listed)
        for key in ("context", "question", "answers", "match"):
            assert [example[key] for example in listed] == [example[key] for example in packed]


def test_parquet_without_pyarrow_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(memfactory.data.parquet.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r'pip install -e "\.\[parquet\]"'):
        make(tmp_path, output="train.parquet")
    assert files(tmp_path) == set()


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "train.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="train.parquet is not a parquet file"):
        make(tmp_path, output="train.parquet")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": ""}, ConfigError, r"memfactory data build NAME.*synth_hop"),
        ({"name": "synth_hops"}, UnknownNameError, r"'synth_hops'. Did you mean 'synth_hop'\? Known: cwe, fwe, hotpotqa, memory-r1, niah"),
        ({"number": 0}, ConfigError, r"--number 0: must be at least 1"),
        ({"tokens": 500}, UnknownNameError, r"option of synth_hop 'tokens'.*Known: docs, seed\."),
        ({"tokenizer": "models/other"}, UnknownNameError, r"option of synth_hop 'tokenizer'"),
        ({"name": "vt", "docs": 5}, UnknownNameError, r"option of vt 'docs'.*Known: chains, hops, seed, tokenizer, tokens"),
        ({"name": "vt", "options": '{"chain": 2}'}, UnknownNameError, r"option of vt 'chain'. Did you mean 'chains'"),
        ({"name": "vt", "options": '{"count": 2}'}, UnknownNameError, r"option of vt 'count'"),
        ({"name": "vt", "options": '{"chains": "two"}'}, ConfigError, r"chains='two' must be of the type of its default, 1"),
        ({"name": "vt", "options": '{"chains": true}'}, ConfigError, r"chains=True"),
        ({"options": "docs=5"}, ConfigError, r"--options 'docs=5' is not JSON"),
        ({"options": "[1]"}, ConfigError, r"--options must be a mapping, got \[1\]"),
        ({"name": "hotpotqa"}, ConfigError, r"give --from FILE"),
        ({"name": "fwe", "tokenizer": "models/none"}, MissingFileError, r"--tokenizer 'models/none': no such folder.*models/tiny"),
        ({"name": "fwe", "tokenizer": "nobody/nothing"}, MissingFileError, r"--tokenizer 'nobody/nothing' could not be loaded"),
        ({"output": "data.txt"}, ConfigError, r"data.txt: the ending '.txt' is unknown. Known: .json, .jsonl, .parquet"),
        ({"output": "data"}, ConfigError, r"Known: .json"),
    ],
)
def test_a_request_that_cannot_be_is_refused_with_what_can(tmp_path: Path, options: dict[str, Any], error: type, message: str) -> None:
    name = options.get("name", "synth_hop")
    given = {"number": 1} | options | {"name": name, "output": str(tmp_path / options.get("output", "out.json"))}
    with pytest.raises(error, match=message):
        build(BuildConfig(**given))
    assert files(tmp_path) == set()


def test_an_output_is_needed_and_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--output FILE.*datas/vt.json"):
        build(BuildConfig(name="vt"))
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        make(tmp_path, output="folder.json")


def test_options_reach_the_generator(tmp_path: Path) -> None:
    report = make(tmp_path, "vt", options='{"chains": 2, "hops": 1}', tokens=1500, seed=3)
    for row in json.loads(report.path.read_text()):
        assert row["context"].count("VAR ") == 2 * 2 + 2 and len(row["outputs"]) == 2
    facts = make(tmp_path, "synth_facts", "facts.json", options='{"chunks": [5]}')
    assert {row["num_chunks"] for row in json.loads(facts.path.read_text())} == {5}


def test_the_configuration_is_read_from_flags() -> None:
    flags = "--name hotpotqa --from a.json b.json --output x.json --docs 100 --legacy_shuffle True --number 7"
    (config,) = HfArgumentParser(BuildConfig).parse_args_into_dataclasses(flags.split())
    assert config == BuildConfig(name="hotpotqa", source=["a.json", "b.json"], output="x.json", docs=100, legacy_shuffle=True, number=7)
    assert all(field.metadata["help"] for field in dataclasses.fields(BuildConfig))


def test_generators_are_listed_with_their_options() -> None:
    assert {"synth_hop", "hotpotqa", "niah", "vt", "cwe", "fwe", "synth_facts"} <= set(GENERATOR_REGISTRY)
    assert describe_options(GENERATOR_REGISTRY.get("niah")) == ["seed=0", "tokens=16384", "variant='single_1'"]
    assert all((part.__doc__ or "").strip() for _, part in GENERATOR_REGISTRY.items())


def test_one_of_my_own_generators_is_built_too(tmp_path: Path, forgotten_parts: None) -> None:
    @GENERATOR_REGISTRY.register("mine")
    def mine(num_examples: int, *, seed: int = 0) -> list[dict[str, Any]]:
        return [{"context": f"the number is {n + seed}", "input": "Which number?", "answers": [str(n + seed)]} for n in range(num_examples)]

    report = make(tmp_path, "mine", seed=5)
    assert report.audit.oracle is None and dict(report.rows())["answer follows from the text"] == "no rule"
    assert [e["answers"] for e in load_longcontext(report.path)] == [["5"], ["6"], ["7"], ["8"]]


def test_tokens_are_counted_without_special_ones() -> None:
    count = token_counter(MODEL)
    assert (count(""), count("alice bob carol"), count("city alice ?\n")) == (0, 3, 4)
