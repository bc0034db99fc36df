"""`MemTrainer` (`mem_grpo`): group-relative policy optimisation of an agent's memory. One step, as in DESIGN section 5:

    batch      = env.collate_fn(examples)
    groups     = agent.rollout(models, [env.observe(e) for e in examples], G)
    rewards    = env.compute_reward(predictions(groups), batch, G)
    advantages = assign_credit(groups, rewards)
    data       = pack(groups, advantages)
    for part in data.minibatches(num_minibatches): ...one optimizer update each

Differences from GRPO as first published (arXiv 2402.03300): (1) a trajectory is many independent conversations that
share one advantage (MemAgent, 2507.02259); (2) no division by the group's standard deviation unless asked for; (3) the
loss averages over all tokens of an update with one denominator. Knows no stage, reward component or prompt by name.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase

from memfactory.agents.base import BaseAgent
from memfactory.agents.build import api_chats, build_agent, local_models, longest_turn
from memfactory.algorithms.credit import BY_QUESTION, Credit, assign_credit, paid_stages
from memfactory.algorithms.logprobs import without_dropout
from memfactory.algorithms.objective import check_objective, loss_defaults
from memfactory.algorithms.packing import TrainBatch, pack
from memfactory.common.bank_prompts import BANK_PROMPTS
from memfactory.common.config import TrainConfig
from memfactory.common.errors import ConfigError, unknown_name
from memfactory.common.files import file_hash
from memfactory.common.porting import renamed
from memfactory.common.prompts import PROMPTS
from memfactory.common.registry import ADVANTAGE_REGISTRY, AGENT_REGISTRY, ENV_REGISTRY, TRAINER_REGISTRY
from memfactory.common.types import RolloutGroup, predictions
from memfactory.engines.base import Engine
from memfactory.engines.chat import check_roles
from memfactory.engines.load import load_tokenizer
from memfactory.engines.rollout import check_rollout_engine, rollout_engine
from memfactory.envs.base import BaseEnv
from memfactory.envs.rewards import rewards_of
from memfactory.evaluation.harness import evaluate, headline, scores_of
from memfactory.evaluation.transcript import transcript
from memfactory.trainers.base import BaseTrainer
from memfactory.trainers.distributed import SharedBatch, dealt, renumbered
from memfactory.trainers.health import peak_flops, with_mfu
from memfactory.trainers.metrics import Averages, Sampled, lost_to, rollout_metrics, together
from memfactory.trainers.policy_update import PolicyUpdate
from memfactory.trainers.reference import build_reference
from memfactory.trainers.rollout_servers import RolloutWeights
from memfactory.trainers.setup import batch_numbers, required_model

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Rollout:
    """One rollout batch, scored and packed."""

    groups: list[RolloutGroup]
    rewards: dict[str, torch.Tensor]
    data: TrainBatch
    metrics: dict[str, Any]


@TRAINER_REGISTRY.register("mem_grpo")
class MemTrainer(BaseTrainer):
    """Trains an agent on an env; both are built from the configuration unless they are given."""

    bar_metrics = ("reward", "informative", "entropy")
    distributed = True

    def __init__(
        self,
        config: TrainConfig,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        env: BaseEnv | None = None,
        agent: BaseAgent | None = None,
        eval_envs: dict[str, BaseEnv] | None = None,
    ) -> None:
        if config.num_generations < 2:
            raise ConfigError("--num_generations 1: an attempt is compared with others of its group, so 2 is the least.")
        if config.lora_dropout:
            raise ConfigError(f"--lora_dropout {config.lora_dropout}: a policy gradient is of the policy that sampled. Leave it at 0.")
        if env is None and not config.data_path:
            raise ConfigError("--data_path is required: datas/tiny/train.json ships with the project.")
        # The data before the weights: a wrong path should not cost the loading of a model.
        if tokenizer is None:
            tokenizer = load_tokenizer(required_model(config))
        env_class, env_options = ENV_REGISTRY.get(config.env_type), config.mapping("env_options")
        self.env: BaseEnv = env if env is not None else env_class(config.data_path, tokenizer, **env_options)
        if eval_envs is None:
            named = [spec.rpartition("=") for spec in config.eval_data_path]
            _refuse_test_set(config.data_path, [path for _, _, path in named])
            eval_envs = {name or path: env_class(path, tokenizer, **env_options) for name, _, path in named}
        self.eval_envs: dict[str, BaseEnv] = eval_envs
        self._normalize = ADVANTAGE_REGISTRY.get(config.advantage)
        check_objective(config)
        check_rollout_engine(config.engine, config.mapping("engine_options"))
        self._given = agent
        super().__init__(config, model, tokenizer)
        if config.dry_run:
            return
        without_dropout(self.model)
        self.policy = PolicyUpdate(self.model, config, self.device, self.bf16, self.parallel)
        roles = roles_of(config, self.agent)
        needs_reference = config.beta > 0 or "reference" in roles.values()
        assert self.held is not None
        start = self.parallel.sampler
        self.reference = build_reference(self.held.held.reference, start, self.device, self.bf16) if needs_reference else None
        engine = {"graphs": config.engine_graphs, "decode_attention": config.decode_attention, "share_prefixes": config.share_prefixes}
        if start is not self.model:  # its weights stand elsewhere after each time they are gathered: nothing may remember where
            engine |= {"graphs": "off", "decode_attention": "model"}
        self.models = local_models(
            start, self.tokenizer, slots=config.engine_slots, bf16=self.bf16, max_prompt_length=config.max_prompt_length,
            roles=roles, reference=self.reference.resident if self.reference is not None else None, policy=self._copy_of_the_policy(),
            options=engine | {"longest": longest_turn(self.agent)},
        )  # fmt: skip
        self.models.frozen_temperature = config.frozen_temperature
        self.agent.attach(self.models)
        self.weights = RolloutWeights(self.parallel, self.models, config, self.bf16)
        self._peak = peak_flops(self.device, self.bf16)

    def prepare(self, model: Any, tokenizer: Any) -> None:
        super().prepare(model, tokenizer)
        config, options = self.config, agent_options(self.config)
        self.agent = self._given if self._given is not None else build_agent(config.agent_type, tokenizer, str(self.device), options)
        roles = roles_of(config, self.agent)
        check_roles(roles, self.agent.stages)
        for chat in api_chats(roles).values():  # a role whose server has no address or key
            chat.close()  # type: ignore[attr-defined]

    @classmethod
    def defaults_for(cls, loss: str) -> dict[str, Any]:
        return loss_defaults(loss) | cls.defaults

    def _copy_of_the_policy(self) -> Engine | None:
        """What samples, if not the hf engine over the trained weights themselves."""
        config = self.config
        if config.engine == "hf":
            return None
        if self.ranks.size > 1 or config.rollout_servers:
            raise ConfigError(f"--engine {config.engine} is for one process. Serve it apart and name it by --rollout_servers alone.")
        path, eos = required_model(config), self.tokenizer.eos_token_id
        return rollout_engine(config.engine, path, self.model, eos, config.mapping("engine_options"))

    def _restore(self, folder: Path) -> None:
        super()._restore(folder)
        self.models.weights_changed()

    # The data

    @property
    def num_steps(self) -> int:
        return max(1, self.config.epoch * len(self.env) // self.config.examples_per_step)

    @property
    def updates_per_step(self) -> int:
        return self.config.num_minibatches * self.config.num_iterations

    def examples_of(self, step: int) -> list[dict[str, Any]]:
        """The examples of a step (`batch_numbers`)."""
        return [self.env[at] for at in batch_numbers(self.config.seed, step, self.config.examples_per_step, len(self.env))]

    # One step

    def training_step(self) -> dict[str, Any]:
        rollout = self._rollout()
        with self.clock.part("forward_backward"):
            return rollout.metrics | self._update(rollout)

    def _update(self, rollout: Rollout) -> dict[str, Any]:
        start = time.perf_counter()
        averages, first = Averages(), True
        with self.clock.part("exchange"):
            batch = SharedBatch(rollout.data, self.ranks)
        for iteration in range(self.config.num_iterations):
            rng = random.Random(f"{self.config.seed}/{self.step}/{iteration}")
            for part in batch.minibatches(self.config.num_minibatches, rng):
                # Before the first update the weights are those that sampled, so the two log-probs should agree.
                self.policy.backward(part, averages, measure_mismatch=first and not self.policy.freezes)
                norm, lr = self.optimizer_update()
                averages.add("grad_norm", norm, 1)
                averages.add("lr", lr, 1)
                first = False
        self.models.weights_changed()
        seconds = time.perf_counter() - start
        tokens = sum(map(len, rollout.data.samples)) * self.config.num_iterations
        everyone = self.ranks.gather((averages, tokens, self._peak_memory()))
        metrics = Averages.of_all([each for each, _, _ in everyone]).means()
        if "loss" in metrics:  # each rank's is its share of the whole
            metrics["loss"] *= self.ranks.size
        times = {
            "update_seconds": seconds,
            "update_tokens_per_second": sum(number for _, number, _ in everyone) / max(seconds, 1e-9),
            "peak_memory_gb": max(memory for _, _, memory in everyone),
        }
        return with_mfu(metrics | times, self._peak, self.ranks.size)

    def _rollout(self) -> Rollout:
        config = self.config
        start = time.perf_counter()
        with self.clock.part("weights"), self.weights.current(self.updates), self.clock.part("rollout"):
            examples, places = self._share(self.examples_of(self.step))
            batch = self.env.collate_fn(examples)
            groups = self.agent.rollout(
                self.models, [self.env.observe(e) for e in examples], config.num_generations,
                seed=config.seed, step=self.step + 1, temperature=config.temperature,
            )  # fmt: skip
        sampled_in = time.perf_counter() - start
        trajectories = [t for group in groups for t in group.trajectories]
        with self.clock.part("reward"):
            rewards = self._checked(rewards_of(self.env, predictions(groups), batch, config.num_generations, trajectories))
            credit, metrics = self._credited(Sampled(groups, rewards, sampled_in))
            data = pack(groups, credit, config.aggregation, config.truncated, config.truncated_penalty, config.max_generate_length)
            data, averages = self._with_logprobs(renumbered(data, places, config.num_generations))
            metrics |= Averages.of_all(self.ranks.gather(averages)).means()
            metrics["sample"] = transcript(examples[0], trajectories[0], float(headline(rewards)[0]))
        return Rollout(groups, rewards, data, metrics)

    def _with_logprobs(self, data: TrainBatch) -> tuple[TrainBatch, Averages]:
        """The samples with what takes a forward pass before the update: frozen old log-probs, and the reference's."""
        averages = Averages()
        if self.policy.freezes:
            with self.clock.part("old_logprobs"):
                data = self.policy.recomputed(data, averages)
        if self.config.beta > 0 and self.reference is not None:
            with self.clock.part("ref_logprobs"), self.reference.scoring() as starting:
                data = replace(data, samples=self.policy.with_logprobs(data.samples, starting, "ref_logprobs"))
        return data, averages

    def _share(self, examples: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[int]]:
        """Those of a step's examples whose groups this process rolls out, and their places in the step."""
        if self.ranks.size == 1:
            return examples, list(range(len(examples)))
        views = [self.env.observe(example) for example in examples]
        sizes = [len(view.context) + sum(len(str(event)) for event in view.events) + 1 for view in views]
        places = dealt([view.example_id for view in views], sizes, self.ranks.size)[self.ranks.rank]
        return [examples[at] for at in places], places

    def _credited(self, mine: Sampled) -> tuple[Credit, dict[str, Any]]:
        """What this process's turns are paid, and the metrics of all processes' attempts."""
        with self.clock.part("exchange"):
            everyone = [mine] if self.ranks.size == 1 else self.ranks.gather(mine.outline())
        whole = mine if self.ranks.size == 1 else together(everyone)
        # Of all attempts of the step: an advantage may be relative to the whole batch.
        credit = assign_credit(whole.groups, whole.rewards, self._normalize, self.config.credit)
        before, number = (sum(len(g.trajectories) for e in part for g in e.groups) for part in (everyone[: self.ranks.rank], [mine]))
        metrics = rollout_metrics(whole.groups, whole.rewards, credit, whole.seconds)
        self.watch.failed(lost_to([t for group in whole.groups for t in group.trajectories], whole.rewards))
        return replace(credit, advantages=credit.advantages[before : before + number]), metrics

    def _checked(self, rewards: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The rewards, if every key that pays is one that a turn of this agent can have."""
        known = {"default", BY_QUESTION, *self.agent.stages}
        for name in paid_stages(rewards):
            if name not in known:
                raise unknown_name(f"reward of {type(self.env).__name__}", name, known, "A component to log has a slash: default/name.")
        return rewards

    # Held-out checks and checkpoints

    def evaluate(self) -> dict[str, float]:
        config = self.config
        metrics: dict[str, float] = {}
        scores: dict[str, tuple[float, float]] = {}
        for name, env in self.eval_envs.items():
            with self.weights.current(self.updates):
                result = evaluate(
                    self.agent, self.models.uncapped(), env, name=name, k=config.eval_k, limit=config.eval_samples, seed=config.seed,
                    share=(self.ranks.rank, self.ranks.size),
                )  # fmt: skip
            made = {key: attempt for each in self.ranks.gather(result.attempts) for key, attempt in each.items()}
            result = scores_of(name, result.examples, config.eval_k, made)
            metrics |= {f"eval/{name}/greedy": result.greedy_mean.value}
            if result.k:
                metrics[f"eval/{name}/sampled"] = result.avg_at_k.value
            if result.coverage < 1:
                metrics[f"eval/{name}/coverage"] = result.coverage
            scores[name] = result.mean.value, result.coverage
        return metrics | self.watch.deciding(scores)

    def about(self) -> dict[str, Any]:
        return super().about() | {
            "agent": AGENT_REGISTRY.name_of(type(self.agent)),
            "agent_options": self.agent.describe(),
            "env": ENV_REGISTRY.name_of(type(self.env)),
            "env_options": asdict(self.env.options),
            "roles": {stage: self.models.role(stage) for stage in self.agent.stages},
            "prompts": PROMPTS | BANK_PROMPTS,
        }

    def _peak_memory(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, kilobytes elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def agent_options(config: TrainConfig) -> dict[str, Any]:
    """The agent's options: those of `agent_options`, and the length flags that were given."""
    flags = {name: getattr(config, name) for name in ("chunk_size", "max_chunk_number", "max_generate_length")}
    return {name: value for name, value in flags.items() if value is not None} | config.mapping("agent_options")


def _refuse_test_set(training: str | None, held_out: list[str]) -> None:
    """Training on what is held out makes every later number worthless (the public run_MemAgent.sh did)."""
    same = [path for path in held_out if file_hash(path) is not None and file_hash(path) == file_hash(training)]
    if same:
        raise ConfigError(f"--data_path {training} is the held-out set {same[0]}. Train on another file.")


def roles_of(config: TrainConfig, agent: BaseAgent) -> dict[str, str]:
    """Roles by stage; `--train_extraction` and `--train_update` are spellings of two of them."""
    roles = config.mapping("roles")
    for stage, trained in (("extraction", config.train_extraction), ("update", config.train_update)):
        if trained is None or stage in roles or (not trained and stage not in agent.stages):
            continue
        if stage not in agent.stages:
            raise ConfigError(
                f"--train_{stage} True: {type(agent).__name__} has no stage {stage!r}; its stages are {', '.join(agent.stages)}."
            )
        roles[stage] = "policy" if trained else "policy_nograd"
    return roles


def __getattr__(name: str) -> Any:
    renamed(__name__, name, {"MemGRPOTrainer": "it is MemTrainer(config).", "MemGRPOArguments": "it is memfactory.TrainConfig."})
