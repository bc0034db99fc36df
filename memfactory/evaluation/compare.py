"""Score checkpoints on data sets and keep what was scored: a second start reads the scores instead of making them again.

Knows no training. The folder `scores/` holds one JSON per model and data set, `trajectories/` whole attempts as text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memfactory.agents.build import build_agent, local_models
from memfactory.common.files import file_hash, read_json, write_json, write_text
from memfactory.envs.base import BaseEnv
from memfactory.evaluation.harness import Scores, evaluate
from memfactory.evaluation.report import Row, paired_rows, result_row
from memfactory.evaluation.transcript import transcript


def weights_hash(model: PreTrainedModel) -> str:
    """SHA-256 over a model's weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def score_model(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    agent: str,
    agent_options: Mapping[str, Any],
    envs: Mapping[str, BaseEnv],
    folder: Path,
    *,
    k: int = 4,
    limit: int = 0,
    seed: int = 0,
    shown: int = 3,
) -> dict[str, Scores]:
    """Scores on every data set; those already in `folder` for the same weights and settings are read, not made again."""
    built = build_agent(agent, tokenizer, str(model.device), agent_options)
    models = local_models(model, tokenizer)
    key: dict[str, Any] = {
        "weights": weights_hash(model),
        "agent": agent,
        "agent_options": dict(agent_options),
        "k": k,
        "limit": limit,
        "seed": seed,
    }
    scores: dict[str, Scores] = {}
    for dataset, env in envs.items():
        key |= {"data": file_hash(env.data_path), "env": type(env).__name__, "env_options": repr(env.options)}
        slug = f"{name}-{re.sub('[^0-9A-Za-z]+', '-', dataset).strip('-')}"
        path = folder / "scores" / f"{slug}.json"
        if path.is_file() and (saved := read_json(path))["key"] == key:
            scores[dataset] = Scores.from_dict(saved)
            continue
        with tqdm(total=min(limit or len(env), len(env)), desc=f"evaluate {name} on {dataset}", unit="question", dynamic_ncols=True) as bar:
            result = evaluate(built, models, env, name=dataset, k=k, limit=limit, seed=seed, on_progress=bar.update)
            bar.set_postfix(sampled=f"{result.avg_at_k.value:.3f}", greedy=f"{result.greedy_mean.value:.3f}")
        texts = [transcript(env[at], t, result.greedy[at][0]) for at, t in enumerate(result.trajectories[:shown])]
        write_text(folder / "trajectories" / f"{slug}.txt", f"\n\n{'=' * 60}\n\n".join(texts) + "\n")
        write_json(path, {"key": key} | result.to_dict())
        scores[dataset] = result
    return scores


def comparison(before: Mapping[str, Scores], after: Mapping[str, Scores]) -> tuple[list[Row], list[Row]]:
    """`results` and `paired` of a base and a trained model on the same data sets."""
    results = [row for name in before for row in (result_row("base", before[name]), result_row("trained", after[name]))]
    return results, [row for name in before for row in paired_rows(before[name], after[name])]
