"""The GPU benchmark's figures as a page in Markdown, goals beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GOALS = {"of_limit": 0.60, "over_generate": 8.0, "mfu": 0.40, "peak_gb": 60.0}


def summary(out: Path, parts: list[str]) -> str:
    """All parts that have figures, and what failed."""
    found = {name: json.loads(path.read_text(encoding="utf-8")) for name in parts if (path := out / f"{name}.json").is_file()}
    lines = ["# GPU benchmark", "", _about(found), ""]
    for name, content in found.items():
        lines += [f"## {name}: {content.get('ended', 'running')}, {content.get('seconds', 0):.0f} s", ""]
        make = {"decode": _decode, "update": _update, "step": _update, "attention": _attention}.get(name.partition("-")[0], _plain)
        lines += make(content)
        lines += [f"- failed: {figure}: {why}" for figure, why in content["failed"].items()]
        lines.append("")
    return "\n".join(lines)


def _about(found: dict[str, Any]) -> str:
    about = next((content["about"] for content in found.values() if content.get("about")), {})
    return ", ".join(f"{name} {value}" for name, value in about.items() if value is not None)


def _decode(content: dict[str, Any]) -> list[str]:
    lines = ["| | rows | context | ms a step | tokens/s | of the limit | of a copy | attention | GB |", "|---|" + "--:|" * 8]
    for name, figure in content["figures"].items():
        cells = [
            str(figure["rows"]), f"{figure['context']:.0f}", f"{1e3 * figure['step_seconds']:.2f}", f"{figure['tokens_per_second']:.0f}",
            _percent(figure.get("of_limit")), _percent(figure.get("of_copy")), figure.get("attention", ""), f"{figure['peak_gb']:.1f}",
        ]  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if "over_generate" in content:
        met = "met" if content["over_generate"] >= GOALS["over_generate"] else "missed"
        lines += ["", f"{content['over_generate']:.1f} x `model.generate` (goal {GOALS['over_generate']:.0f}: {met})."]
    ratios = [figure["of_limit"] for name, figure in content["figures"].items() if name.count(",") == 1 and "of_limit" in figure]
    if ratios:
        met = "met" if min(ratios) >= GOALS["of_limit"] else "missed"
        lines.append(f"Least part of the bandwidth limit: {min(ratios):.0%} (goal {GOALS['of_limit']:.0%}: {met}).")
    if content.get("kernels"):
        lines += ["", "Kernels of eight steps of the first batch, the longest:", "", "| us | calls | |", "|--:|--:|---|"]
        lines += [f"| {row['microseconds']:.0f} | {row['calls']} | {row['name']} |" for row in content["kernels"]]
    return lines


def _update(content: dict[str, Any]) -> list[str]:
    lines = _plain(content)
    mfu = content["figures"].get("update", {}).get("mfu_of_limit")
    if mfu is not None:
        lines.append(f"MFU {mfu:.1%}, nothing recomputed counted (goal {GOALS['mfu']:.0%}: {'met' if mfu >= GOALS['mfu'] else 'missed'}).")
    peak = content["figures"].get("whole step", {}).get("peak_gb")
    if peak:
        met = "met" if peak < GOALS["peak_gb"] else "missed"
        lines.append(f"Peak of a whole step: {peak:.1f} GB (goal under {GOALS['peak_gb']:.0f}: {met}).")
    return lines


def _attention(content: dict[str, Any]) -> list[str]:
    lines = ["| | us | TB/s | of the limit | of a copy |", "|---|--:|--:|--:|--:|"]
    for name, figure in content["figures"].items():
        ratios = f"{_percent(figure.get('of_limit'))} | {_percent(figure.get('of_copy'))}"
        lines.append(f"| {name} | {figure['microseconds']:.0f} | {figure['bytes_per_second'] / 1e12:.3f} | {ratios} |")
    return lines


def _plain(content: dict[str, Any]) -> list[str]:
    def shown(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return [
        f"- {name}: " + ", ".join(f"{key} {shown(value)}" for key, value in figure.items()) for name, figure in content["figures"].items()
    ]


def _percent(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.0%}"
