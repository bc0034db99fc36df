"""The one configuration: no public flag disappears, every option explains itself, flags win over YAML, mistakes name the nearest."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from memfactory.agents.memory_agent import MemoryAgent
from memfactory.common.config import TrainConfig, read_config
from memfactory.common.errors import ConfigError, MissingFileError, UnknownNameError, UserError
from memfactory.common.flags import at_home
from memfactory.trainers.mem_grpo_trainer import agent_options, roles_of

ROOT = Path(__file__).resolve().parent.parent

PUBLIC = set(
    "model_name_or_path data_path output_dir lr beta gradient_accumulation_steps num_generations chunk_size max_chunk_number "
    "max_prompt_length max_generate_length save_steps batch_size env_type agent_type epoch wandb_name train_extraction train_update".split()
)
"""What the public launchers pass."""

FLAGS = PUBLIC | set(
    "trainer eval_data_path agent_options env_options trainer_options roles plugins temperature frozen_temperature engine_slots "
    "engine_graphs decode_attention share_prefixes advantage credit loss "
    "aggregation clip_low clip_high dual_clip truncated truncated_penalty old_logprobs num_minibatches num_iterations optimizer "
    "weight_decay adam_beta1 adam_beta2 warmup_updates lr_schedule max_grad_norm tokens_per_micro_batch logprob_chunks share_prompts "
    "gradient_checkpointing bf16 master_weights gradients moments offload_optimizer lora_r lora_alpha lora_dropout lora_targets "
    "reference max_steps max_cpu_minutes max_rollout_tokens packing attention_backend seed device threads eval_steps eval_samples eval_k "
    "save_total_limit resume report_to loss_options kl kl_gradient engine engine_options tis tis_cap parallel profile_steps "
    "rollout_servers api_options dry_run max_lost_steps max_idle_steps".split()
)
"""All flags that users' scripts may pass: a new one is added here, and none is ever taken out."""

SPECIAL = {
    "old_logprobs": "frozen", "agent_options": '{"a": 1}', "env_options": '{"a": 1}', "trainer_options": '{"a": 1}',
    "api_options": '{"a": 1}',
    "roles": '{"a": "policy"}', "plugins": ["x"], "loss_options": '{"a": 1}', "engine_options": '{"a": 1}', "tis": "sequence",
    "master_weights": "split", "gradients": "bf16", "moments": "8bit", "reference": "cpu",
}  # fmt: skip


def kind_of(name: str) -> str:
    """The type of an option as it is written, without `| None`."""
    hint = get_type_hints(TrainConfig)[name]
    return str(getattr(hint, "__name__", hint) if isinstance(hint, type) and not get_args(hint) else hint).removesuffix(" | None")


def another_value(name: str) -> Any:
    """A value of an option that is not its default."""
    by_kind = {"int": 7, "float": 0.125, "bool": not getattr(TrainConfig(), name), "str": "text", "list[str]": ["text"]}
    return SPECIAL.get(name, by_kind[kind_of(name)])


class WriterAgent(MemoryAgent):
    """An agent with the stages that --train_extraction and --train_update speak of."""

    stages = ("extraction", "update", "answer")


def agent_with(cls: type[MemoryAgent]) -> MemoryAgent:
    return cls(None, "cpu", chunk_size=4)


@pytest.fixture
def yaml_file(tmp_path: Path) -> Any:
    """`yaml_file(text)` writes a configuration file and returns its path."""

    def write(text: str) -> str:
        (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
        return str(tmp_path / "run.yaml")

    return write


def test_no_flag_disappears() -> None:
    missing = FLAGS - {f.name for f in dataclasses.fields(TrainConfig)}
    assert not missing, f"scripts pass these flags: {sorted(missing)}"


def test_every_flag_is_in_the_frozen_list() -> None:
    assert {f.name for f in dataclasses.fields(TrainConfig)} <= FLAGS


@pytest.mark.parametrize("name", sorted(FLAGS))
def test_every_flag_is_read_from_the_command_line(name: str) -> None:
    value = another_value(name)
    given = value if isinstance(value, list) else [str(value)]
    parsed = getattr(read_config([f"--{name}", *given]), name)
    assert parsed == value and type(parsed) is type(value)


def test_every_option_has_a_help_text() -> None:
    for option in dataclasses.fields(TrainConfig):
        text = option.metadata["help"]
        assert len(text.split()) >= 3 and text.endswith("."), option.name


def test_help_lists_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        read_config(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert not [name for name in [*FLAGS, "import"] if f"--{name}" not in shown]


def test_flags_win_over_the_file_and_the_file_over_the_defaults(yaml_file: Any) -> None:
    path = yaml_file("lr: 1e-4\nbatch_size: 3\nagent_options: {chunk_size: 8}\nplugins: [a.py]\n")
    config = read_config([path, "--lr", "0.5", "--plugins", "b.py", "c.py"])
    assert (config.lr, config.batch_size, config.num_generations) == (0.5, 3, TrainConfig().num_generations)
    assert config.plugins == ["b.py", "c.py"]
    assert config.mapping("agent_options") == {"chunk_size": 8}


def test_numbers_of_a_file_are_numbers_whatever_yaml_makes_of_them(yaml_file: Any) -> None:
    config = read_config([yaml_file("lr: 1e-4\nmax_steps: 3\nbeta: 0\nbf16: false\n")])
    assert config.lr == 1e-4 and isinstance(config.lr, float)
    assert config.max_steps == 3 and config.bf16 is False


def test_import_is_a_spelling_of_plugins() -> None:
    assert read_config(["--import", "a.py", "b"]).plugins == ["a.py", "b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lern_rate", "1"], r"Unknown flag '--lern_rate'.*--lr"),
        (["--num_generation", "4"], r"Unknown flag '--num_generation'\. Did you mean '--num_generations'\?"),
        (["--batch", "4"], r"Unknown flag '--batch'"),
        (["--lr", "1", "run.yaml"], r"Unknown flag 'run.yaml'"),
    ],
)
def test_an_unknown_flag_names_the_nearest(arguments: list[str], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        read_config(arguments)


def test_an_unknown_key_names_the_file_and_the_nearest(yaml_file: Any) -> None:
    with pytest.raises(UnknownNameError, match=r"run\.yaml 'batchsize'\. Did you mean 'batch_size'\?"):
        read_config([yaml_file("batchsize: 3\n")])


def test_a_missing_configuration_file_is_named() -> None:
    with pytest.raises(MissingFileError, match=r"No such configuration file: absent\.yaml"):
        read_config(["absent.yaml"])


@pytest.mark.parametrize("name", ["agent_options", "env_options", "roles"])
def test_what_is_not_json_is_named_with_an_example(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"--{name} '\{{chunk_size: 8' is not JSON.*Example: --{name} '\{{\"key\": 1\}}'"):
        read_config([f"--{name}", "{chunk_size: 8"])
    with pytest.raises(ConfigError, match=rf"--{name} must be a mapping"):
        read_config([f"--{name}", "[1]"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--batch_size 0: must be at least 1"),
        ({"num_generations": -1}, "--num_generations -1"),
        ({"epoch": 0}, "--epoch 0"),
        ({"temperature": 0.0}, "--temperature 0.0: training samples"),
        ({"frozen_temperature": -0.5}, "--frozen_temperature -0.5: must be at least 0"),
        ({"old_logprobs": "froze"}, "'froze'. Did you mean 'frozen'?"),
        ({"aggregation": "constant"}, "--aggregation constant divides by the most tokens of a turn, and --max_generate_length is None"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        TrainConfig(**options)
    assert message in str(error.value)


def test_a_file_that_is_no_mapping_is_refused(yaml_file: Any) -> None:
    with pytest.raises(ConfigError, match="must hold a mapping of options, not a list"):
        read_config([yaml_file("- lr\n")])


def test_a_file_that_is_no_yaml_is_one_clear_error(yaml_file: Any) -> None:
    with pytest.raises(UserError, match=r"run\.yaml"):
        read_config([yaml_file("plugins: [\n")])


def test_a_single_text_in_a_file_is_a_list_of_one(yaml_file: Any) -> None:
    assert read_config([yaml_file("plugins: a.py\n")]).plugins == ["a.py"]


@pytest.mark.parametrize("value", ["two", "[1, 2]", "{a: 1}", "2.5"])
def test_a_value_of_the_wrong_type_in_a_file_is_refused_by_name(yaml_file: Any, value: str) -> None:
    with pytest.raises(UserError, match="batch_size|flag '2'"):
        read_config([yaml_file(f"batch_size: {value}\n")])


@pytest.mark.parametrize(("flag", "value"), [("batch_size", "two"), ("lr", "fast"), ("resume", "maybe"), ("bf16", "half")])
def test_a_value_of_the_wrong_type_is_one_clear_error(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=rf"--{flag}\b.*{value}"):
        read_config([f"--{flag}", value])
    assert "usage:" not in capsys.readouterr().err


def test_an_empty_value_of_a_file_is_the_default(yaml_file: Any) -> None:
    assert read_config([yaml_file("max_steps:\nplugins: []\n")]).to_dict() == TrainConfig().to_dict()


def test_null_for_what_must_have_a_value_is_no_silent_default(yaml_file: Any) -> None:
    with pytest.raises(ConfigError, match="dual_clip is null"):
        read_config([yaml_file("dual_clip: null\n")])


def test_a_repeated_import_keeps_all_its_files() -> None:
    assert read_config(["--import", "a.py", "--lr", "1", "--import", "b.py", "c.py"]).plugins == ["a.py", "b.py", "c.py"]


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_example_configurations_parse_and_name_what_exists(path: Path) -> None:
    config = read_config([str(path)])
    data = [spec.rpartition("=")[2] for spec in config.eval_data_path]
    named = [str(config.data_path), str(config.model_name_or_path), *data]
    for name in named if path.stem.startswith("tiny") else []:  # the others are for models and data that do not ship
        assert (ROOT / name).exists() or name.startswith("models/Qwen"), f"{path.name} names {name}"


def test_there_is_an_example_configuration() -> None:
    assert (ROOT / "examples" / "configs" / "tiny.yaml").is_file()


def test_a_step_is_batch_size_times_accumulation() -> None:
    assert TrainConfig(batch_size=3, gradient_accumulation_steps=4).examples_per_step == 12


def test_length_flags_are_options_of_the_agent_and_the_explicit_ones_win() -> None:
    config = TrainConfig(chunk_size=8, max_generate_length=5, agent_options='{"chunk_size": 9}')
    assert agent_options(config) == {"chunk_size": 9, "max_generate_length": 5}


@pytest.mark.parametrize(
    ("options", "roles"),
    [
        ({}, {}),
        ({"train_extraction": True}, {"extraction": "policy"}),
        ({"train_extraction": False, "train_update": True}, {"extraction": "policy_nograd", "update": "policy"}),
        ({"train_extraction": True, "roles": '{"extraction": "reference"}'}, {"extraction": "reference"}),
        ({"roles": '{"answer": "reference"}', "train_update": False}, {"answer": "reference", "update": "policy_nograd"}),
    ],
)
def test_train_flags_are_spellings_of_roles(options: dict[str, Any], roles: dict[str, str]) -> None:
    assert roles_of(TrainConfig(**options), agent_with(WriterAgent)) == roles


def test_training_a_stage_that_the_agent_lacks_is_an_error_and_not_training_it_is_none() -> None:
    agent = agent_with(MemoryAgent)
    assert roles_of(TrainConfig(train_extraction=False, train_update=False), agent) == {}
    with pytest.raises(ConfigError, match=r"--train_update True: MemoryAgent has no stage 'update'; its stages are memory, answer"):
        roles_of(TrainConfig(train_update=True), agent)


MAY_CHANGE = set(
    "dry_run max_lost_steps max_idle_steps "
    "output_dir resume max_steps max_cpu_minutes max_rollout_tokens epoch save_steps save_total_limit eval_steps eval_samples eval_k "
    "eval_data_path report_to wandb_name threads device engine_graphs parallel profile_steps rollout_servers".split()
)


FOLLOWS = {"rollout_servers": ["old_logprobs", "tis"], "engine": ["old_logprobs", "tis"], "tis": ["old_logprobs"]}
"""What `auto` makes of other options when one is given."""


@pytest.mark.parametrize("name", sorted(FLAGS))
def test_a_change_of_what_decides_a_step_is_named_and_only_that(name: str) -> None:
    value = another_value(name)
    assert value != getattr(TrainConfig(), name)
    changes = TrainConfig(**{name: value}).changes(TrainConfig().to_dict())
    assert sorted(change.split(":")[0] for change in changes) == sorted([*([] if name in MAY_CHANGE else [name]), *FOLLOWS.get(name, [])])


def test_an_option_that_an_older_run_did_not_know_had_its_default() -> None:
    saved = TrainConfig(lr=1e-4).to_dict()
    del saved["clip_high"]
    assert TrainConfig(lr=1e-4).changes(saved) == []
    assert TrainConfig(lr=1e-4, clip_high=0.28).changes(saved) == ["clip_high: 0.2 -> 0.28"]


def test_the_length_of_a_run_decides_its_steps_when_the_learning_rate_falls_with_it() -> None:
    short, long = (TrainConfig(lr_schedule="linear", max_steps=steps) for steps in (3, 6))
    assert long.changes(short.to_dict()) == ["max_steps: 3 -> 6"]


def test_a_slot_of_the_agent_is_a_flag() -> None:
    config = read_config(["--module", "mine", "--agent_options", '{"module": {"prompt_order": "chunk_first"}}'], lambda config: ["module"])
    assert config.mapping("agent_options") == {"module": {"type": "mine", "prompt_order": "chunk_first"}}


@pytest.mark.parametrize("arguments", [["--modul", "mine"], ["--module"]])
def test_what_is_no_slot_is_still_refused(arguments: list[str]) -> None:
    with pytest.raises(UserError, match="--module"):
        read_config(arguments, lambda config: ["module"])


def test_a_tilde_is_home_wherever_a_path_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("output_dir: ~/run\n")
    config = read_config(["~/run.yaml", "--model_name_or_path=~/model", "--data_path", "~/a.json", "--import", "~/p.py"])
    assert (config.output_dir, config.model_name_or_path) == (str(tmp_path / "run"), str(tmp_path / "model"))
    assert config.data_path == str(tmp_path / "a.json") and config.plugins == [str(tmp_path / "p.py")]
    assert [at_home(word) for word in ("a=~/x", "~", "~bob/x", "x~/y", "--n=~")] == [
        f"a={tmp_path}/x", str(tmp_path), "~bob/x", "x~/y", f"--n={tmp_path}",
    ]  # fmt: skip
