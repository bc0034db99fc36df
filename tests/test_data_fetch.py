"""Promise: a published file lands whole or not at all, and one that cannot be fetched says how to get it or one like it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import HfArgumentParser

import memfactory.data.fetch
from memfactory.common.errors import MissingFileError, UnknownNameError
from memfactory.common.registry import GENERATOR_REGISTRY
from memfactory.data.build import BuildConfig
from memfactory.data.fetch import MEMAGENT, MEMFACTORY, PUBLISHED, fetch


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def pretend(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None, left: str = "", online: bool = True) -> list[tuple[str, str]]:
    """Stand in for the hub: write a file, or fail with `error` after leaving `left` in the download folder."""
    asked = []

    def download(repository: str, file: str, *, repo_type: str, local_dir: Path) -> str:
        assert repo_type == "dataset"
        asked.append((repository, file))
        (local_dir / ".cache").mkdir(exist_ok=True)
        if error is not None:
            (local_dir / ".cache" / "x.incomplete").write_text(left)
            raise error
        (local_dir / file).write_text(f"{repository}/{file}")
        return str(local_dir / file)

    monkeypatch.setattr(memfactory.data.fetch, "hf_hub_download", download)
    monkeypatch.setattr(memfactory.data.fetch.constants, "HF_HUB_OFFLINE", not online)
    return asked


def test_a_file_lands_in_the_folder_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch)
    fetched = fetch("eval_50", tmp_path / "datas")
    assert fetched.path == tmp_path / "datas" / "eval_50.json" and not fetched.already_there
    assert fetched.path.read_text() == f"{MEMFACTORY}/eval_50.json" and everything(tmp_path) == ["datas/eval_50.json"]
    assert fetch("eval_50.json", tmp_path / "datas").already_there and asked == [(MEMFACTORY, "eval_50.json")]


def test_files_of_one_name_in_two_repositories_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    ours, theirs = fetch("eval_50", tmp_path), fetch("memagent/eval_50", str(tmp_path))
    assert ours.path != theirs.path and theirs.path.read_text() == f"{MEMAGENT}/eval_50.json"
    assert fetch("memagent/train", tmp_path).path.name == "hotpotqa_train_32k.parquet"


def test_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"'eval_5O'. Did you mean 'eval_50'\? Known: .*eval_fwe_16384.*memagent/train"):
        fetch("eval_5O", tmp_path)


def test_offline_says_how_to_fetch_by_hand_and_what_to_build_instead(tmp_path: Path) -> None:
    """The real hub client, which the tests' HF_HUB_OFFLINE=1 keeps from the network."""
    with pytest.raises(MissingFileError) as caught:
        fetch("eval_fwe_16384", tmp_path / "datas")
    message = str(caught.value)
    assert "nworats/MemFactory" in message and "HF_HUB_OFFLINE is set" in message
    assert f"`hf download nworats/MemFactory eval_fwe_16384.json --repo-type dataset --local-dir {tmp_path / 'datas'}`" in message
    assert "`memfactory data build fwe --tokens 16384" in message and everything(tmp_path) == []


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("no connection\nmore"), ConnectionError("refused"), OSError("disk full")])
def test_a_failure_names_its_reason_in_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    pretend(monkeypatch, error)
    with pytest.raises(
        MissingFileError, match=rf"eval_100.json of the hub data set {MEMFACTORY} could not be fetched \({str(error).splitlines()[0]}\)"
    ):
        fetch("eval_100", tmp_path)
    assert everything(tmp_path) == []


def test_what_was_downloaded_before_a_failure_is_kept_for_the_next_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ConnectionError("lost"), left="half of it")
    with pytest.raises(MissingFileError):
        fetch("eval_100", tmp_path)
    assert everything(tmp_path) == [".fetch_eval_100.json/.cache/x.incomplete"]
    pretend(monkeypatch)
    assert not fetch("eval_100", tmp_path).already_there and everything(tmp_path) == ["eval_100.json"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_stand_in_is_a_command_that_build_takes(name: str) -> None:
    program, data, verb, generator, *flags = shlex.split(PUBLISHED[name].stand_in)
    assert (program, data, verb) == ("memfactory", "data", "build") and generator in GENERATOR_REGISTRY
    (config,) = HfArgumentParser(BuildConfig).parse_args_into_dataclasses(flags)
    assert config.output and Path(config.output).suffix == Path(PUBLISHED[name].file).suffix
