#!/usr/bin/env python3
"""The table as the papers print it, from an evaluation's ledgers: a line for each model, a column for each data set.

    python evaluation/summarize_results.py [output/evaluation]

Prints it and writes summary.md and summary.csv there. Every number is computed anew from the ledgers, also of unfinished jobs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from memfactory.cli import guarded
from memfactory.common.errors import MissingFileError, UserError
from memfactory.common.files import read_json, write_text
from memfactory.evaluation.harness import Scores
from memfactory.evaluation.jobs import load_scores
from memfactory.evaluation.report import NOTES, csv_text, markdown_table, published_table, summary


def main() -> None:
    words = sys.argv[1:]
    if len(words) > 1 or any(word.startswith("-") for word in words):
        raise UserError("Usage: python evaluation/summarize_results.py [FOLDER], the --output_dir of an evaluation.")
    folder = Path(words[0] if words else "output/evaluation")
    jobs = sorted(folder.glob("*/*/job.json"))
    if not jobs:
        raise MissingFileError(
            f"{folder} holds no evaluation. `python evaluation/evaluate_orchestrator.py --output_dir {folder}` makes one."
        )
    scores: dict[str, dict[str, Scores]] = {}
    anchors: dict[str, tuple[str, str]] = {}
    for job in jobs:
        about = read_json(job)
        scores.setdefault(about["model_name"], {})[about["dataset"]] = load_scores(job.parent)
        if about.get("anchor"):
            anchors[about["model_name"]] = (about["anchor_of"], about["anchor"])
    results, _ = summary(scores, anchors)
    text = markdown_table(published_table(results), right=range(1, 99))
    k = ", ".join(sorted({str(row["k"]) for row in results}))
    unfinished = [row for row in results if row["coverage"] < 1]
    holes = [f"{row['model']} on {row['dataset']}: {row['coverage']:.1%} scored, the rest counts as wrong" for row in unfinished]
    text = "\n\n".join([f"avg@{k}, ± the standard error over questions", text, *holes, NOTES])
    write_text(folder / "summary.md", text + "\n")
    write_text(folder / "summary.csv", csv_text(results))
    print(text)


if __name__ == "__main__":
    sys.exit(guarded(main))
