"""Checkpoints are whole or absent whatever kills the process, load in plain transformers, and refuse what they cannot mean."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

from memfactory.agents.build import build_agent
from memfactory.common.config import TrainConfig
from memfactory.common.errors import ConfigError, DataError, MissingFileError
from memfactory.common.files import file_hash, looks_local, read_json, write_json
from memfactory.data.generators.synth_facts import synth_facts
from memfactory.engines.load import load_causal_lm, load_config, load_model
from memfactory.trainers import checkpoint as ckpt
from memfactory.trainers.mem_grpo_trainer import MemTrainer
from memfactory.trainers.state_files import read_state, write_state

TENSORS = "memfactory.trainers.state_files.save_file"

KILLED_WHILE_SAVING = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from memfactory.engines.load import load_model
from memfactory.trainers.checkpoint import checkpoints, load_state, prune, save_checkpoint
folder, kills = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
model, tokenizer = load_model(str(folder / "base"))
rng = random.Random(7)
out = folder / "run"
for _ in range(kills):
    child = os.fork()
    if child == 0:
        step = max((int(p.name.split("-")[1]) for p in checkpoints(out)), default=0)
        while True:
            step += 1
            with torch.no_grad():
                model.lm_head.weight.fill_(step)
            save_checkpoint(out, step, model, tokenizer, {"step": step}, {"optimizers": []})
            prune(out, 2)
    time.sleep(rng.uniform(0.05, 0.5))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = checkpoints(out)
    for whole in found[-1:]:
        load_model(str(whole))
        load_state(whole)
    print(found[-1].name if found else "none", (out / "last").resolve().name if (out / "last").exists() else "none", flush=True)
"""


@pytest.fixture
def save(
    tmp_path: Path, tiny_qwen3: Callable[..., Qwen3ForCausalLM], tiny_tokenizer: PreTrainedTokenizerFast
) -> Callable[..., tuple[Path, Qwen3ForCausalLM]]:
    """`save(step, seed=0)` writes a checkpoint of a random model to tmp_path and returns its folder and the model."""

    def write(step: int, seed: int = 0, **state: Any) -> tuple[Path, Qwen3ForCausalLM]:
        model = tiny_qwen3(seed=seed)
        return ckpt.save_checkpoint(tmp_path, step, model, tiny_tokenizer, {"step": step}, state | {"tensor": torch.ones(2)}), model

    return write


def assert_whole(folder: Path, step: int) -> None:
    model, _ = load_model(str(folder))
    assert ckpt.load_state(folder)["step"] == step
    assert ckpt.load_weights(folder).keys() == model.state_dict().keys()


@pytest.mark.slow
def test_a_kill_during_a_save_leaves_whole_checkpoints_only(
    tmp_path: Path, tiny_qwen3: Callable[..., Qwen3ForCausalLM], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_qwen3().save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    command = [sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path), "16"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 16 and "none none" not in result.stdout.splitlines()[-1]
    for line in result.stdout.splitlines():
        newest, last = line.split()
        # `last` is moved after the folder is in place: a kill between the two leaves it one behind, never dangling.
        assert newest == last or last == "none" or int(newest.split("-")[1]) == int(last.split("-")[1]) + 1
    found = ckpt.checkpoints(tmp_path / "run")
    step = int(found[-1].name.split("-")[1])
    assert_whole(found[-1], step)
    assert float(ckpt.load_weights(found[-1])["lm_head.weight"].unique()) == step, "weights and folder are of one moment"
    assert_whole((tmp_path / "run" / "last").resolve(), int((tmp_path / "run" / "last").resolve().name.split("-")[1]))


@pytest.mark.parametrize("where", ["transformers.PreTrainedTokenizerFast.save_pretrained", TENSORS, "os.rename"])
def test_a_save_that_fails_half_way_leaves_the_one_before(
    save: Callable[..., tuple[Path, Qwen3ForCausalLM]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    first, _ = save(1)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(where, fail)
    with pytest.raises(OSError, match="disk full"):
        save(2)
    monkeypatch.undo()
    assert ckpt.checkpoints(tmp_path) == [first] and (tmp_path / "last").resolve() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000001", "last"], "nothing half-written is left"
    assert_whole(first, 1)


@pytest.mark.parametrize(
    "where",
    [
        TENSORS,
        "os.rename",
        "memfactory.common.files._exchanged",
    ],
)
def test_a_save_over_the_same_step_that_fails_leaves_the_old_one(
    save: Callable[..., tuple[Path, Qwen3ForCausalLM]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder, _ = save(1)
    original = os.rename

    def fail(*args: Any, **kwargs: Any) -> None:
        if where == "os.rename" and not str(args[0]).endswith(".part"):
            return original(*args, **kwargs)
        raise OSError("disk full")

    monkeypatch.setattr(where, fail)
    if where == "os.rename":  # a system without an exchange of two folders
        monkeypatch.setattr("memfactory.common.files._exchanged", lambda *_: False)
    with pytest.raises(OSError, match="disk full"):
        save(1, seed=1)
    monkeypatch.undo()
    assert (tmp_path / "last").exists() and ckpt.checkpoints(tmp_path) == [folder]
    assert_whole(folder, 1)


def test_a_save_over_the_same_step_replaces_it(save: Callable[..., tuple[Path, Qwen3ForCausalLM]], tmp_path: Path) -> None:
    save(1, seed=0)
    folder, model = save(1, seed=1)
    assert ckpt.checkpoints(tmp_path) == [folder]
    assert torch.equal(ckpt.load_weights(folder)["model.norm.weight"], model.state_dict()["model.norm.weight"])
    assert torch.equal(ckpt.load_weights(folder)["lm_head.weight"], model.state_dict()["lm_head.weight"])


def test_leftovers_of_a_kill_are_no_checkpoints(save: Callable[..., tuple[Path, Qwen3ForCausalLM]], tmp_path: Path) -> None:
    folder, _ = save(3)
    shutil.copytree(folder, tmp_path / ".checkpoint-000009.123.part")
    shutil.copytree(folder, tmp_path / "checkpoint-best")
    (tmp_path / "checkpoint-000008").mkdir()
    assert ckpt.checkpoints(tmp_path) == [folder]


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for step in (1000000, 2, 30, 999999):
        (tmp_path / f"checkpoint-{step:06d}" / "trainer_state").mkdir(parents=True)
        (tmp_path / f"checkpoint-{step:06d}" / "trainer_state" / "state.json").touch()
    assert [int(path.name.split("-")[1]) for path in ckpt.checkpoints(tmp_path)] == [2, 30, 999999, 1000000]


@pytest.mark.slow
def test_prune_keeps_the_newest_the_best_and_the_last(save: Callable[..., tuple[Path, Qwen3ForCausalLM]], tmp_path: Path) -> None:
    folders = [save(step)[0] for step in range(1, 6)]
    ckpt.mark_best(tmp_path, folders[1])
    ckpt.prune(tmp_path, 2)
    assert ckpt.checkpoints(tmp_path) == [folders[1], folders[3], folders[4]]
    ckpt.prune(tmp_path, 0)
    assert ckpt.checkpoints(tmp_path) == [folders[1], folders[4]], "the last one is never deleted"
    assert (tmp_path / "best").resolve() == folders[1] and (tmp_path / "last").resolve() == folders[4]


def test_links_are_relative_so_that_a_run_can_be_moved(save: Callable[..., tuple[Path, Qwen3ForCausalLM]], tmp_path: Path) -> None:
    folder, _ = save(1)
    ckpt.mark_best(tmp_path, folder)
    assert os.readlink(tmp_path / "last") == os.readlink(tmp_path / "best") == "checkpoint-000001"


def test_transformers_loads_a_checkpoint(
    save: Callable[..., tuple[Path, Qwen3ForCausalLM]], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    folder, model = save(1, seed=4)
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "city alice ?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == tiny_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    with torch.no_grad():
        assert torch.equal(loaded(torch.tensor([ids])).logits, model(torch.tensor([ids])).logits)


def test_memfactory_json_says_what_was_trained_and_how(
    tmp_path: Path, tiny_qwen3: Callable[..., Qwen3ForCausalLM], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    write_json(tmp_path / "facts.json", synth_facts(2, chunks=(1,)))
    config = TrainConfig(
        data_path=str(tmp_path / "facts.json"), output_dir=str(tmp_path / "run"), chunk_size=16, max_generate_length=2,
        roles='{"memory": "policy_nograd"}', agent_options='{"max_chunk_number": 3}', env_options='{"reward": "boxed_f1"}', device="cpu",
    )  # fmt: skip
    about = read_json(MemTrainer(config, tiny_qwen3(), tiny_tokenizer).save() / "memfactory.json")
    assert (about["trainer"], about["agent"], about["env"]) == ("mem_grpo", "memagent", "longcontext")
    module = {"type": "recurrent_memory_module", "prompt_order": "memory_first", "answer_prompt": "boxed"}  # its lengths are the agent's
    assert about["agent_options"] == {"chunk_size": 16, "max_chunk_number": 3, "max_generate_length": 2, "by_session": "", "module": module}
    assert about["env_options"]["reward"] == "boxed_f1" and about["roles"] == {"memory": "policy_nograd", "answer": "policy"}
    assert about["format"] == 1 and "<<memory>>" in about["prompts"]["memory_update"]
    assert build_agent(about["agent"], tiny_tokenizer, "cpu", about["agent_options"]).describe() == about["agent_options"]
    assert (about["step"], about["updates"]) == (0, 0)
    assert about["config"] == json.loads(json.dumps(config.to_dict()))


def test_another_version_of_the_state_is_refused(save: Callable[..., tuple[Path, Qwen3ForCausalLM]]) -> None:
    folder, _ = save(1)
    state = ckpt.load_state(folder)
    shutil.rmtree(folder / "trainer_state")
    write_state(folder / "trainer_state", state | {"version": ckpt.STATE_VERSION + 1})
    with pytest.raises(ConfigError, match=f"version {ckpt.STATE_VERSION + 1}.*reads {ckpt.STATE_VERSION}"):
        ckpt.load_state(folder)


class Armed:
    """Runs code when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.mark,)


def test_a_pickled_state_is_never_read_and_the_refusal_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-000004"
    folder.mkdir()
    (folder / "trainer_state.pt").write_bytes(pickle.dumps(Armed(tmp_path / "ran")))
    assert ckpt.checkpoints(tmp_path) == [folder], "a run with an older state must not be overwritten"
    with pytest.raises(ConfigError, match=f"not read.*--model_name_or_path {folder}"):
        ckpt.load_state(folder)
    (folder / "trainer_state").mkdir()
    (folder / "trainer_state" / "state.json").write_bytes(pickle.dumps(Armed(tmp_path / "ran")))
    with pytest.raises(DataError, match="damaged"):
        ckpt.load_state(folder)
    assert not (tmp_path / "ran").exists()


def test_nothing_in_a_checkpoint_is_a_pickle(save: Callable[..., tuple[Path, Qwen3ForCausalLM]]) -> None:
    folder, _ = save(1, random=ckpt.random_states())
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".jinja", ".txt"} and len(files) > 4
    assert not list(folder.glob("tensors*")), "vLLM reads every *.safetensors beside config.json"


TENSORS_IN_A_STATE = [torch.tensor(2.0), torch.arange(6).view(2, 3).T, torch.ones(3, dtype=torch.bfloat16), torch.empty(0).short()]
KEYS = st.text(max_size=3) | st.integers() | st.sampled_from(["@tensor", "@tuple", "@float", "@items"])
STATES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(TENSORS_IN_A_STATE),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(max_size=4), STATES, max_size=4))
def test_a_state_comes_back_bit_for_bit(state: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_state(Path(folder) / "state", state)
        assert same(read_state(Path(folder) / "state"), state)


def same(one: Any, other: Any) -> bool:
    """Equal in type and value, NaN to NaN, tensors bit by bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


@pytest.mark.parametrize("harm", ["cut", "empty", "gone", "text", "names a tensor that is not there", "a list"])
def test_a_damaged_state_is_one_error_that_says_what_to_do(
    save: Callable[..., tuple[Path, Qwen3ForCausalLM]], harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = save(1)
    file, told = folder / "trainer_state" / "tensors-00001.safetensors", folder / "trainer_state" / "state.json"
    {
        "cut": lambda: file.write_bytes(file.read_bytes()[:-3]),
        "empty": lambda: file.write_bytes(b""),
        "gone": file.unlink,
        "text": lambda: told.write_text("{", encoding="utf-8"),
        "names a tensor that is not there": lambda: told.write_text('{"tensor": {"@tensor": "7"}}', encoding="utf-8"),
        "a list": lambda: told.write_text("[]", encoding="utf-8"),
    }[harm]()
    with pytest.raises(DataError, match="damaged.*older checkpoint"):
        ckpt.load_state(folder)


def test_damage_names_the_newest_older_checkpoint_that_is_whole(save: Callable[..., tuple[Path, Qwen3ForCausalLM]], tmp_path: Path) -> None:
    folders = [save(step)[0] for step in (1, 2, 3)]
    for folder in folders[1:]:
        (folder / "trainer_state" / "state.json").write_text('{"version": 3}' if folder == folders[2] else "{", encoding="utf-8")
    says = r"checkpoint-000003 is damaged \(KeyError: 'counters'\)\. .*checkpoint-000001 is whole: .*mv .*000003"
    with pytest.raises(DataError, match=says), ckpt.damage_explained(folders[2], tmp_path):
        ckpt.load_state(folders[2])["counters"]
    with pytest.raises(DataError, match="checkpoint-000001 is whole"), ckpt.damage_explained(folders[1], tmp_path):
        ckpt.load_state(folders[1])
    with pytest.raises(ConfigError, match="^other options$"), ckpt.damage_explained(folders[1], tmp_path):
        raise ConfigError("other options")


def test_a_full_disk_names_the_checkpoint_to_go_on_from(
    save: Callable[..., tuple[Path, Qwen3ForCausalLM]], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(1)

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(TENSORS, full)
    with pytest.raises(OSError, match=r"000002 could not be written: .*No space left.*checkpoint-000001 is whole: make room, and --resume"):
        save(2)


def test_a_checkpoint_that_is_a_link_is_taken_up_and_pruned_as_a_link(
    save: Callable[..., tuple[Path, Qwen3ForCausalLM]], tmp_path: Path
) -> None:
    first, _ = save(1)
    elsewhere = tmp_path / "elsewhere"
    first.rename(elsewhere)
    first.symlink_to(elsewhere)
    assert ckpt.checkpoints(tmp_path) == [first]
    assert_whole(first, 1)
    save(1)
    assert not first.is_symlink(), "saved over: the link is replaced, what it named stays"
    assert_whole(elsewhere, 1)
    second = save(2)[0]
    second.rename(tmp_path / "moved")
    second.symlink_to(tmp_path / "moved")
    save(3)
    ckpt.prune(tmp_path, 1)
    assert [path.name for path in ckpt.checkpoints(tmp_path)] == ["checkpoint-000003"]
    assert_whole(tmp_path / "moved", 2)


def test_a_model_or_data_file_that_moved_is_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text("[]", encoding="utf-8")
    config = TrainConfig(data_path=str(tmp_path / "a.json"), model_name_or_path="old")
    state = {"config": config.to_dict(), "data": file_hash(config.data_path), "model": "content"}
    moved = TrainConfig(data_path=str(tmp_path / "b.json"), model_name_or_path="new")
    ckpt.refuse_changes(tmp_path, moved, state, "content")
    with pytest.raises(ConfigError, match="model_name_or_path: 'old' -> 'new'"):
        ckpt.refuse_changes(tmp_path, moved, state, "other content")
    (tmp_path / "b.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"data_path: .*a\.json.*content of .*b\.json"):
        ckpt.refuse_changes(tmp_path, moved, state, "content")


def test_a_models_own_code_is_never_run_nor_asked_about(
    save: Callable[..., tuple[Path, Qwen3ForCausalLM]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = save(1)
    config = read_json(folder / "config.json") | {"model_type": "strange", "auto_map": {
        "AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}  # fmt: skip
    write_json(folder / "config.json", config)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
    for load in (load_causal_lm, load_config):
        with pytest.raises(MissingFileError, match="never run"):
            load(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("path", ["models/absent", "./absent", "absent", "~/absent/model"])
def test_a_missing_model_says_how_to_get_one(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match=r"models/tiny.*hf download.*MODEL_PATH.*--model_name_or_path") as error:
        load_model(path)
    assert str(error.value).startswith(f"No model at {path!r}"), "said once, not wrapped in another failure"


def test_a_hub_name_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(MissingFileError, match="'someone/no-such-model' could not be loaded") as error:
        load_model("someone/no-such-model")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "local"), [("Qwen/Qwen3-4B", False), ("models/tiny", True), ("output/run", True), ("/x/y", True), ("a/b/c", True), ("x", True)]
)
def test_a_hub_name_is_told_from_a_path(path: str, local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert looks_local(path) is local


def test_random_states_go_on_where_they_were() -> None:
    states = ckpt.random_states()
    first = (torch.rand(3).tolist(), random.random(), float(np.random.rand()))
    ckpt.restore_random_states(states)
    assert first == (torch.rand(3).tolist(), random.random(), float(np.random.rand()))
