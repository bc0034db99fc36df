#!/usr/bin/env python3
"""What the tiny agents learn, and from what: GRPO beside its ablations and beside more supervised steps, on one budget.

Every arm starts from the same base, gets about the same CPU minutes on one thread and is scored on the same held-out questions;
gains are paired by example. Finished arms are kept: a second start runs what is missing.

    python benchmarks/learning.py --skill memagent --seeds 0 1 2 --workers 2
    python benchmarks/learning.py --skill memory_r1 --arms grpo answer writing
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from skills import SKILLS, Arm, Skill

from memfactory.common.files import read_json, write_json, write_jsonl, write_text
from memfactory.evaluation.harness import Scores
from memfactory.evaluation.jobs import Job, run_job
from memfactory.evaluation.jobs import load_scores as load_folder
from memfactory.evaluation.ledger import SAMPLED
from memfactory.evaluation.statistics import Paired, clustered_mean, paired_difference

ROOT = Path(__file__).resolve().parent.parent
SFT_FLAGS = ["--optimizer", "muon", "--lr", "1e-3", "--lr_schedule", "linear", "--batch_size", "48", "--num_minibatches", "1"]


def run_arm(name: str, seed: int, args: argparse.Namespace) -> None:
    """Train one arm in a process of its own, then score it there."""
    skill: Skill = SKILLS[args.skill]
    arm = skill.arms[name]
    folder = args.output / f"{name}-{seed}"
    if (folder / "scores.json").is_file():
        return
    train = [sys.executable, "-m", "memfactory.cli", "train", skill.config, *flags_of(skill, arm, seed, folder)]
    train += ["--output_dir", str(folder), "--seed", str(seed), "--eval_steps", "0", "--resume", "True", "--save_steps", "20"]
    score = [sys.executable, __file__, "--skill", args.skill, "--score", str(folder / "last"), "--arm", name]
    score += ["--into", str(folder / "scores.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with folder.with_suffix(".log").open("w") as log:
        for command in (train, score):
            subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=log, stderr=log)
    folder.with_suffix(".jsonl").unlink(missing_ok=True)


def flags_of(skill: Skill, arm: Arm, seed: int, folder: Path) -> list[str]:
    """What an arm says over its skill's configuration; the rows of a supervised control are written beside its folder."""
    if arm.demonstrations is not None:
        data = folder.with_suffix(".jsonl")
        write_jsonl(data, itertools.islice(arm.demonstrations(seed), skill.sft_steps * 48))
        return ["--trainer", "mem_sft", "--data_path", str(data), *SFT_FLAGS, "--max_steps", str(skill.sft_steps)]
    options: dict[str, object] = {"max_steps": skill.steps} | arm.flags
    if arm.roles:
        options["roles"] = json.dumps(arm.roles)
    return [part for key, value in options.items() for part in (f"--{key}", str(value))]


def score_folder(skill: Skill, model: str, into: Path, arm: Arm | None = None) -> None:
    """avg@4 and greedy of a model folder on every held-out set; stages that an arm did not train are the base's."""
    folders = {name: into.with_suffix("") / name for name in skill.sets}
    job = skill.job | ({"roles": arm.roles, "reference": skill.base} if arm is not None and arm.roles else {})
    for name, folder in folders.items():
        run_job(Job(into.parent.name, model, name, f"{skill.data}/{name}.json", str(folder), **job))  # type: ignore[arg-type]
    write_json(into, {name: str(folder) for name, folder in folders.items()})


def load_scores(path: Path) -> dict[str, Scores]:
    return {name: load_folder(Path(folder)) for name, folder in read_json(path).items()}


def cpu_and_steps(folder: Path) -> str:
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return f"{last['step']} steps, {last['cpu_seconds_total'] / 60:.1f} min"


def per_kind(skill: Skill, base: dict[str, Scores], arms: dict[str, dict[str, Scores]]) -> list[str]:
    """Sampled accuracy by kind of question, the base beside the mean over GRPO's seeds; nothing if GRPO was not run."""
    trained = [scores for key, scores in arms.items() if key.startswith("grpo-")]
    if not trained:
        return []
    cells = by_type(skill, base) if "env" in skill.job else by_length(skill, base)
    lines = ["", "### By kind of question (sampled)", "", "| set | kind | n | base | grpo |", "|---|---|--:|--:|--:|"]
    for (name, kind), places in cells.items():

        def mean(scores: dict[str, Scores], name: str = name, places: list[tuple[int, int | None]] = places) -> float:
            return clustered_mean([marks(scores[name], at, question) for at, question in places]).value

        after = sum(map(mean, trained)) / len(trained)
        lines.append(f"| {name} | {kind} | {len(places)} | {mean(base):.2f} | {after:.2f} |")
    return lines


def marks(scores: Scores, at: int, question: int | None) -> list[float]:
    """The sampled scores of an example, or of one of its questions."""
    if question is None:
        return scores.sampled[at]
    attempts = [scores.attempts[scores.examples[at], SAMPLED, number] for number in range(scores.k)]
    return [float(attempt.questions[question] or 0.0) for attempt in attempts]


def by_length(skill: Skill, base: dict[str, Scores]) -> dict[tuple[str, str], list[tuple[int, int | None]]]:
    """MemAgent's questions by chunks and hops."""
    cells: dict[tuple[str, str], list[tuple[int, int | None]]] = {}
    for name in base:
        rows = enumerate(read_json(ROOT / skill.data / f"{name}.json"))
        for at, row in sorted(rows, key=lambda entry: (entry[1]["num_chunks"], entry[1]["hops"])):
            cells.setdefault((name, f"{row['num_chunks']} chunks, {row['hops']} hops"), []).append((at, None))
    return cells


def by_type(skill: Skill, base: dict[str, Scores]) -> dict[tuple[str, str], list[tuple[int, int | None]]]:
    """A dialogue's questions by their type."""
    cells: dict[tuple[str, str], list[tuple[int, int | None]]] = {}
    for name in base:
        for at, row in enumerate(read_json(ROOT / skill.data / f"{name}.json")):
            for number, question in enumerate(row["questions"]):
                cells.setdefault((name, question["type"]), []).append((at, number))
    return dict(sorted(cells.items()))


def report(args: argparse.Namespace) -> str:
    """Every arm and seed against the base, as Markdown."""
    skill: Skill = SKILLS[args.skill]
    base = load_scores(args.output / "base.json")
    lines = [f"One thread an arm; the CPU minutes of training stand in each row. Base: `{skill.base}`.", ""]
    lines += [f"- `{arm}`: {skill.arms[arm].about}" for arm in args.arms]
    arms: dict[str, dict[str, Scores]] = {}
    for name in skill.sets:
        lines += [
            "",
            f"### {name}",
            "",
            "| arm | seed | trained for | sampled (avg@4) | greedy | gain sampled [95 %] | gain greedy [95 %] |",
        ]
        lines += ["|---|--:|---|--:|--:|--:|--:|"]
        before = base[name]
        lines.append(f"| base | | | {before.avg_at_k.value:.3f} ± {before.avg_at_k.se:.3f} | {before.greedy_mean.value:.3f} | | |")
        for arm, seed in itertools.product(args.arms, args.seeds):
            folder = args.output / f"{arm}-{seed}"
            if not (folder / "scores.json").is_file():
                continue
            scores = arms.setdefault(f"{arm}-{seed}", load_scores(folder / "scores.json"))[name]
            gains = []
            for metric in ("sampled", "greedy"):
                pair = paired_difference(getattr(before, metric), getattr(scores, metric))
                gains.append(signed(pair))
            mean = scores.avg_at_k
            lines.append(
                f"| {arm} | {seed} | {cpu_and_steps(folder)} | {mean.value:.3f} ± {mean.se:.3f} | {scores.greedy_mean.value:.3f} | "
                f"{gains[0]} | {gains[1]} |"
            )
    return "\n".join([*lines, *against(arms), *over_seeds(skill, arms), *per_kind(skill, base, arms)]) + "\n"


def signed(pair: Paired) -> str:
    return f"{pair.diff:+.3f} [{pair.ci_low:+.3f}, {pair.ci_high:+.3f}]"


def against(arms: dict[str, dict[str, Scores]]) -> list[str]:
    """What GRPO scores above each other arm of the same seed, paired by example, greedy."""
    lines = []
    for key, scores in arms.items():
        arm, _, seed = key.rpartition("-")
        ours = arms.get(f"grpo-{seed}")
        if arm == "grpo" or ours is None:
            continue
        pairs = [paired_difference(scores[name].greedy, ours[name].greedy) for name in scores]
        lines.append("| ".join(["", f"{arm} ", f"{seed} ", *(f"{signed(pair)} " for pair in pairs), ""]).strip())
    sets = list(next(iter(arms.values()), {}))
    heading = [
        "",
        "### grpo less the arm, greedy [95 %]",
        "",
        f"| arm | seed | {' | '.join(sets)} |",
        "|---|--:" + "|--:" * len(sets) + "|",
    ]
    return [*heading, *lines] if lines else []


def over_seeds(skill: Skill, arms: dict[str, dict[str, Scores]]) -> list[str]:
    """Each arm less the one it is meant to stand beside, over all seeds that both have, paired by example."""
    lines = []
    for name, arm in skill.arms.items():
        own = [seed for key in arms for of, _, seed in [key.rpartition("-")] if of == name]
        seeds = [seed for seed in own if f"{arm.beside}-{seed}" in arms]
        for data in skill.sets if seeds else ():
            cells = []
            for metric in ("sampled", "greedy"):
                pair = paired_difference(*(_together(arms, which, seeds, data, metric) for which in (arm.beside, name)))
                cells.append(signed(pair))
            lines.append(f"| {name} less {arm.beside} | {data} | {', '.join(seeds)} | {cells[0]} | {cells[1]} |")
    heading = ["", "### Over all seeds", "", "| arms | set | seeds | sampled [95 %] | greedy [95 %] |", "|---|---|---|--:|--:|"]
    return [*heading, *lines] if lines else []


def _together(arms: dict[str, dict[str, Scores]], arm: str, seeds: list[str], data: str, metric: str) -> list[list[float]]:
    """Each example's scores, those of all seeds in one list."""
    tables = [getattr(arms[f"{arm}-{seed}"][data], metric) for seed in seeds]
    return [[score for row in rows for score in row] for rows in zip(*tables, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skill", default="memagent", choices=list(SKILLS))
    parser.add_argument("--output", type=Path, help="default: output/learning/SKILL")
    parser.add_argument("--arms", nargs="+", help="default: all of the skill's")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="print the report of what has been run, and run nothing")
    parser.add_argument("--score", help="internal: a model folder to score")
    parser.add_argument("--arm", help="internal: the arm that it is of")
    parser.add_argument("--into", type=Path)
    args = parser.parse_args()
    skill = SKILLS[args.skill]
    args.arms = args.arms or list(skill.arms)
    if unknown := [arm for arm in args.arms if arm not in skill.arms]:
        parser.error(f"{args.skill} has no arm {', '.join(unknown)}. It has: {', '.join(skill.arms)}.")
    if args.score:
        score_folder(skill, args.score, args.into, skill.arms[args.arm])
        return
    os.chdir(ROOT)
    args.output = (args.output or ROOT / "output/learning" / args.skill).resolve()
    args.output.mkdir(parents=True, exist_ok=True)
    if not (args.output / "base.json").is_file():
        score_folder(skill, skill.base, args.output / "base.json")
    if args.report:
        print(report(args))
        return
    jobs = [(arm, seed) for arm in args.arms for seed in args.seeds]
    with ThreadPoolExecutor(args.workers) as pool:
        for job, _ in zip(jobs, pool.map(lambda job: run_arm(*job, args), jobs), strict=True):
            print("done:", *job, flush=True)
    write_text(args.output / "report.md", report(args))
    print(report(args))


if __name__ == "__main__":
    main()
