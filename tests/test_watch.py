"""A run that scores or learns nothing never looks like success; nothing of a checkpoint is lost to a kill or to a second run."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from memfactory.common import files
from memfactory.common.config import TrainConfig
from memfactory.common.errors import ConfigError, InfrastructureError, MissingFileError, UnknownNameError, UserError
from memfactory.common.files import alone, check_place, new_folder, put_back, write_json
from memfactory.common.registry import TRAINER_REGISTRY
from memfactory.data.generators.synth_facts import synth_facts
from memfactory.evaluation.harness import Scores
from memfactory.trainers import checkpoint as ckpt
from memfactory.trainers.base import BaseTrainer
from memfactory.trainers.setup import checking, saving
from memfactory.trainers.watch import Watch

ROOT = Path(__file__).resolve().parent.parent
LOST = {"scored": 0, "unscorable": 8}
ALIKE = {"scored": 8, "unscorable": 0, "reward": 0.25}


def watched(steps: list[tuple[dict[str, Any], bool]], **options: Any) -> tuple[Watch, list[int]]:
    """A watch that saw these steps, and the steps after which it would have stopped the run."""
    watch, stops = Watch(TrainConfig(**options)), []
    for number, (metrics, updated) in enumerate(steps, 1):
        watch.step(metrics, updated)
        if watch.stop(number) is not None:
            stops.append(number)
    return watch, stops


@pytest.mark.parametrize(
    ("steps", "options", "stops"),
    [
        ([(LOST, False)] * 4, {}, [3, 4]),
        ([(LOST, False)] * 4, {"max_lost_steps": 0, "max_idle_steps": 0}, []),
        ([(LOST, False), (ALIKE, True)] * 4, {"max_lost_steps": 2}, []),
        ([(ALIKE, False)] * 3, {"max_idle_steps": 3}, [3]),
        ([(LOST, False), (ALIKE, False)] * 3, {"max_idle_steps": 5}, [5, 6]),
        ([({"loss": 1.0}, True)] * 9, {"max_idle_steps": 1}, []),
        ([({"loss": math.nan}, False)] * 2, {"max_idle_steps": 2}, [2]),
    ],
)
def test_when_a_run_is_stopped(steps: list[tuple[dict[str, Any], bool]], options: dict[str, Any], stops: list[int]) -> None:
    assert watched(steps, **options)[1] == stops


def test_what_was_lost_is_said_at_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    watch = Watch(TrainConfig(max_prompt_length=5))
    watch.failed(f"The memory prompt has {n} tokens, max_prompt_length is 5." for n in range(90, 98))
    watch.failed(["The server did not answer"])
    assert [record.getMessage() for record in caplog.records] == [
        "An attempt was lost: The memory prompt has 90 tokens, max_prompt_length is 5. Others like it are counted.",
        "An attempt was lost: The server did not answer. Others like it are counted.",
    ]
    for _ in range(3):
        watch.step(LOST, False)
    why = watch.stop(3)
    assert isinstance(why, InfrastructureError)
    for part in ("Stopped at step 3: no attempt of the last 3 step(s) has a score", "8 x The memory prompt", "--max_prompt_length above 5"):
        assert part in str(why)


def test_an_end_without_a_score_or_an_update_is_no_success() -> None:
    assert isinstance(watched([(LOST, False)] * 2)[0].at_end(2, 0), InfrastructureError)
    assert "starting weights" in str(watched([(ALIKE, False)])[0].at_end(1, 0))
    assert "lower --lr" in str(watched([({"loss": math.nan}, False)])[0].at_end(1, 0))
    assert watched([(ALIKE, False)])[0].at_end(9, 3) is None and Watch(TrainConfig()).at_end(9, 0) is None


def test_a_check_of_which_too_little_was_scored_decides_nothing_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(TrainConfig())
    assert watch.deciding({"a": (0.4, 1.0), "b": (0.2, 0.9)}) == {"eval/score": pytest.approx(0.3)} and watch.deciding({}) == {}
    for share in (0.89, 0.0, math.nan):
        assert watch.deciding({"a": (0.9, 1.0), "b": (math.nan, share)}) == {}
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("Held-out b: 89% of the attempts have a score. Below 90% a check does not decide")
    watch.tell(3, {"eval/b/greedy": math.nan}, False)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., BaseTrainer]:
    """`run(**options)`: a small run of the shipped tiny model."""
    write_json(tmp_path / "facts.json", synth_facts(4, seed=3, chunks=(2,)))
    monkeypatch.setattr("memfactory.trainers.base.plot_curves", lambda *_: None)

    def make(**options: Any) -> BaseTrainer:
        settings: dict[str, Any] = {
            "model_name_or_path": str(ROOT / "models/tiny"), "data_path": str(tmp_path / "facts.json"), "output_dir": str(tmp_path / "run"),
            "batch_size": 1, "num_generations": 2, "chunk_size": 64, "max_generate_length": 4, "max_steps": 9, "device": "cpu",
            "save_steps": 1, "eval_data_path": [f"held={tmp_path / 'held.json'}"],
        }  # fmt: skip
        config = TrainConfig(**(settings | options))
        return TRAINER_REGISTRY.get(config.trainer)(config)  # type: ignore[no-any-return]

    write_json(tmp_path / "held.json", synth_facts(2, seed=4, chunks=(2,)))
    return make


def test_prompts_that_are_all_too_long_stop_the_run_without_a_checkpoint(
    run: Callable[..., BaseTrainer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    trainer = run(max_prompt_length=5, eval_steps=3, eval_samples=1, eval_k=0)
    with pytest.raises(
        InfrastructureError, match=r"Stopped at step 3.*6 x PromptTooLong: The memory prompt has \d+ tokens.*--max_prompt_length above 5"
    ):
        trainer.train()
    assert not ckpt.checkpoints(trainer.output_dir) and not (trainer.output_dir / "best").is_symlink()
    said = [record.getMessage() for record in caplog.records]
    assert len([text for text in said if text.startswith("An attempt was lost")]) == 1
    assert [text for text in said if text.startswith("Step 3, held-out: held greedy 0.")], said


def test_a_run_that_loses_its_server_keeps_what_it_learned_and_makes_the_lost_steps_again(run: Callable[..., BaseTrainer]) -> None:
    trainer = run(save_steps=100, max_lost_steps=2, eval_data_path=[])

    def step() -> dict[str, Any]:
        if trainer.step < 3:
            trainer.updates += 1
            return ALIKE
        trainer.watch.failed(["refused"] * 8)
        return LOST

    trainer.training_step = step  # type: ignore[method-assign]
    with pytest.raises(InfrastructureError, match="Stopped at step 5"):
        trainer.train()
    assert [folder.name for folder in ckpt.checkpoints(trainer.output_dir)] == ["checkpoint-000003"]


@pytest.mark.parametrize("lost_by", ["base", "trained"])
def test_the_quick_start_does_not_end_well_without_its_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost_by: str) -> None:
    """What is missing is made by another start, which does not take the first one's report for an end."""
    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "examples" / "quickstart.py")
    assert spec is not None and spec.loader is not None
    quickstart = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quickstart)
    trained, lost = list[str](), {lost_by}

    def scored(job: Any, tell: Any) -> Scores:
        score = math.nan if job.model_name in lost and job.dataset == "2-4 chunks" else 1.0
        return Scores(job.dataset, ["a", "b"], [[score] * 4] * 2, [[1.0]] * 2)

    class Trainer:
        total_steps = updates_per_step = cpu_seconds = 1

        def __init__(self, config: TrainConfig) -> None:
            self.last = Path(config.output_dir)

        def train(self) -> Path:
            trained.append("once")
            return self.last

    monkeypatch.setattr(quickstart, "run_job", scored)
    monkeypatch.setattr(quickstart, "MemTrainer", Trainer)
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--output_dir", str(tmp_path / "out")])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InfrastructureError, match=rf"^{lost_by} on 2-4 chunks: 20.0% of the attempts have a score.*Start again"):
        quickstart.main()
    assert len(trained) == (lost_by == "trained")
    lost.clear()
    quickstart.main()
    quickstart.main()
    assert len(trained) == 1 + (lost_by == "trained"), "a third start has nothing to do"


# What is checked before weights are


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"agent_type": "memagen"}, UnknownNameError, "Did you mean 'memagent'"),
        ({"agent_options": {"module": "nobody"}}, UserError, "'?module'?|nobody"),
        ({"agent_options": {"chunk_size": 0}}, ConfigError, "chunk_size 0: must be at least 1"),
        ({"roles": {"answer": "refrence"}}, UnknownNameError, "role of the stage answer 'refrence'. Did you mean 'reference'"),
        ({"roles": {"anwser": "policy"}}, UnknownNameError, "stage of --roles 'anwser'. Did you mean 'answer'"),
        ({"report_to": ["swanlap"]}, UnknownNameError, "Did you mean 'swanlab'"),
        ({"output_dir": "/proc/nothing/here"}, ConfigError, "--output_dir /proc/nothing/here cannot be written to"),
        ({"data_path": "nowhere.json"}, MissingFileError, "nowhere.json"),
        ({"model_name_or_path": "./nowhere"}, MissingFileError, "No model at './nowhere'"),
        ({"trainer": "mem_sft", "model_name_or_path": "./nowhere", "data_path": "x"}, MissingFileError, "x"),
    ],
)
def test_names_and_places_are_checked_before_a_model_is_loaded(
    run: Callable[..., BaseTrainer], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    monkeypatch.setattr("memfactory.trainers.base.load_causal_lm", lambda *_: pytest.fail("the weights were loaded"))
    with pytest.raises(error, match=said):
        run(**options)


@pytest.mark.parametrize("trainer", ["mem_grpo", "mem_sft"])
def test_a_dry_run_loads_no_weights_and_writes_nothing(
    run: Callable[..., BaseTrainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: str
) -> None:
    monkeypatch.setattr("memfactory.trainers.base.load_causal_lm", lambda *_: pytest.fail("the weights were loaded"))
    (tmp_path / "turns.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}], "response": "b"}\n')
    options = {"trainer": trainer} | ({"data_path": str(tmp_path / "turns.jsonl"), "eval_data_path": []} if trainer == "mem_sft" else {})
    made = run(dry_run=True, max_steps=None, **options)
    assert made.total_steps >= 1 and made.updates_per_step == 1 and not (tmp_path / "run").exists()


def test_a_second_run_in_a_folder_is_refused(run: Callable[..., BaseTrainer], tmp_path: Path) -> None:
    code = "import sys, pathlib\nfrom memfactory.common.files import alone\nwith alone(pathlib.Path(sys.argv[1])):"
    held = [sys.executable, "-c", code + " print('here', flush=True); input()", str(tmp_path / "run")]
    first = run()
    with subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"here\n"
        for begin in (first.train, run):
            with pytest.raises(ConfigError, match="Another process is writing"):
                begin()
        other.communicate(b"\n")
    check_place(tmp_path / "run")
    with alone(tmp_path / "run"):
        pass


# A kill at any moment


@pytest.mark.parametrize("at_once", [True, False])
def test_a_swap_that_is_killed_leaves_the_old_folder_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool) -> None:
    if not at_once:
        monkeypatch.setattr(files, "_exchanged", lambda *_: False)
    built = tmp_path / "a [built] folder"

    def build(text: str) -> None:
        with new_folder(built) as part:
            (part / "text").write_text(text)

    build("old")
    real = {"rename": os.rename, "_exchanged": files._exchanged}
    for number in range(4):  # the process ends after so many of the system's calls
        left = iter(range(number))

        def killed(name: str, *paths: Path, left: Iterator[int] = left) -> Any:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return real[name](*paths)

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(os, "rename", partial(killed, "rename"))
            patch.setattr(files, "_exchanged", partial(killed, "_exchanged"))
            patch.setattr("shutil.rmtree", lambda *a, **_: None)  # whatever a killed process would have cleaned away stays
            patch.setattr(files, "put_back", lambda path: None)
            build(f"new {number}")
        if at_once:  # whoever looks now finds one
            assert (built / "text").read_text().startswith(("old", "new"))
        put_back(built)
        assert (built / "text").read_text().startswith(("old", "new"))
        build("old")
        assert (built / "text").read_text() == "old"


def test_a_best_checkpoint_that_was_not_marked_is_marked_when_the_run_goes_on(tmp_path: Path) -> None:
    for step in (1, 2):
        (tmp_path / ckpt.folder_name(step)).mkdir()
    ckpt.mark(tmp_path, tmp_path / ckpt.folder_name(1), 1)
    ckpt.mark(tmp_path, tmp_path / ckpt.folder_name(2), 2)
    assert os.readlink(tmp_path / "best") == os.readlink(tmp_path / "last") == "checkpoint-000002"
    ckpt.mark(tmp_path, tmp_path / ckpt.folder_name(2), 9)  # not there any more
    assert os.readlink(tmp_path / "best") == "checkpoint-000002"


# What is said at the start


@pytest.mark.parametrize(
    ("options", "steps", "said"),
    [
        ({"save_steps": 10}, 50, "A checkpoint every 10 steps, and at the end."),
        ({"save_steps": 50}, 5, "--save_steps 50 is past the end: a checkpoint only of the last step. --save_steps 1 saves on the way."),
        ({"save_steps": 250}, 166, "--save_steps 33 saves on the way."),
        ({"save_steps": 50}, 1, "--save_steps 50 is past the end: a checkpoint only of the last step."),
        (
            {"save_steps": 0, "eval_steps": 2, "eval_data_path": ["x"]},
            8,
            "where a held-out check is the best so far. --save_steps 1 saves on the way.",
        ),
    ],
)
def test_when_checkpoints_are_written_is_said_without_contradiction(options: dict[str, Any], steps: int, said: str) -> None:
    assert saving(TrainConfig(**options), steps).endswith(said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"eval_data_path": ["x"], "eval_steps": 0}, "will be scored not at all. --eval_steps 4 scores"),
        ({"eval_data_path": ["x"], "eval_steps": 21}, "--eval_steps 21 is past the end (20 steps)"),
        ({"eval_data_path": ["x"], "eval_steps": 0, "trainer": "mem_reinforce"}, "before and after training only"),
        ({"eval_data_path": ["x"], "eval_steps": 5, "trainer": "mem_sft"}, "mem_sft makes no held-out checks"),
        ({"eval_data_path": ["x"], "eval_steps": 5}, ""),
        ({}, ""),
    ],
)
def test_held_out_data_that_will_not_be_scored_is_said(options: dict[str, Any], said: str) -> None:
    found = checking(TrainConfig(**options), 20)
    assert said in " ".join(found) and bool(found) == bool(said)
