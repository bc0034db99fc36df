"""The tables of the report: scores, differences, types, abstention, judgments and cost, their intervals drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memfactory.evaluation.compare import Row, is_compared
from memfactory.evaluation.html.charts import SHARES, Scale, around_zero, axis, bar, whisker
from memfactory.evaluation.html.markup import Html, html, tag
from memfactory.evaluation.html.table import Column, Page, colour, count, figure, interval, model_name, section, table, verdict
from memfactory.evaluation.judged import judged_interval
from memfactory.evaluation.report import coverage_note


def scores(page: Page) -> Html:
    """The headline table, its intervals drawn."""
    k = ", ".join(sorted({str(row["k"]) for row in page["results"] if row["k"]}))
    columns = [
        Column("model"), Column(axis(SHARES), "plot"), Column(f"avg@{k}" if k else "greedy", "num"), Column("95 % interval", "num wide"),
        Column("greedy", "num wide"), Column("n", "num wide", "questions"), Column("scored", "num wide", "attempts that have a score"),
    ]  # fmt: skip
    groups = []
    for dataset in page["datasets"]:
        rows = [row for row in page["results"] if row["dataset"] == dataset]
        if rows:
            heading = html([dataset, tag("span", {"class": "metric"}, rows[0].get("metric", ""))])
            groups.append((heading, [_score(page, row) for row in rows]))
    lead = (
        "Dots are means over questions, lines their 95 % intervals (Student's, over conversations where questions share one). "
        "What infrastructure lost counts as wrong; questions to abstain on are apart."
    )
    return section("Scores", table(columns, groups), id="scores", lead=lead)


def _score(page: Page, row: Row) -> list[Any]:
    words = f"{row['model']} on {row['dataset']}: {figure(row['score'])}"
    holes = row["coverage"] is None or row["coverage"] < 1
    scored = tag("span", {"class": "bad"}, figure(row["coverage"], ".1%")) if holes else "all"
    return [
        model_name(page, row["model"]), whisker(SHARES, row["score"], row["low"], row["high"], colour(page, row["model"]), words),
        tag("b", figure(row["score"])), interval(row["low"], row["high"]), figure(row["greedy"]), row["n"], scored,
    ]  # fmt: skip


def differences(page: Page) -> Html:
    """Each later model against the first on the same questions; an interval that crosses 0 is tied."""
    paired: Sequence[Row] = page["paired"]
    scale = around_zero([row[key] for row in paired for key in ("diff", "ci_low", "ci_high") if is_compared(row) and row[key] is not None])
    tested = any(row.get("p") is not None for row in paired)
    p = Column("p", "num wide", "two-sided; adjusted for the number of data sets where there are several (Holm)")
    columns = [
        Column("model"), Column(axis(scale, "+g"), "plot"), Column("difference", "num"),
        Column("95 % interval", "num wide"), *([p] if tested else []), Column("n", "num wide"), Column("verdict"),
    ]  # fmt: skip
    groups = []
    for dataset, base in dict.fromkeys((row["dataset"], row["base"]) for row in paired):
        rows = [row for row in paired if (row["dataset"], row["base"]) == (dataset, base)]
        groups.append(
            (
                html([dataset, tag("span", {"class": "metric"}, "against ", model_name(page, base))]),
                [_pair(page, scale, row, tested) for row in rows],
            )
        )
    lead = "Paired question by question. The thick line is no difference: an interval that crosses it tells the two models not apart. "
    lead += coverage_note(paired)
    return section("Differences", table(columns, groups), id="differences", lead=lead) if paired else Html()


def _pair(page: Page, scale: Scale, row: Row, tested: bool) -> list[Any]:
    p = row.get("p_holm", row.get("p"))
    shown_p = "–" if p is None else "<.001" if p < 0.001 else f"{p:.3f}"
    diff, low, high = (row[key] if is_compared(row) else None for key in ("diff", "ci_low", "ci_high"))
    words = f"{row['model']} − {row['base']}, {row['metric']}: {figure(diff, '+.3f')}, {row['verdict']}"
    decides = row["metric"] == deciding(page, row)
    return [
        html([model_name(page, row["model"]), tag("span", {"class": "metric"}, row["metric"])]),
        whisker(scale, diff, low, high, row["verdict"] if is_compared(row) else "unknown", words),
        tag("b" if decides else "span", figure(diff, "+.3f")), interval(low, high, "+.3f"),
        *([shown_p] if tested else []), row["n"], verdict(row["verdict"]),
    ]  # fmt: skip


def deciding(page: Page, row: Row) -> str:
    """The metric whose verdict counts: of the sampled attempts where there are any."""
    found = next((r for r in page["results"] if (r["dataset"], r["model"]) == (row["dataset"], row["model"])), None)
    return "greedy" if found is None or not found["k"] else "sampled"


def types(page: Page) -> Html:
    """Bars by type of question, the models under each other."""
    rows: Sequence[Row] = [row for row in page["by_type"] if not row["abstain"] and row["model"] not in page["anchors"]]
    columns = [
        Column("type", "wide"), Column("model"), Column(axis(SHARES), "plot"), Column("score", "num"), Column("95 % interval", "num wide"),
        Column("n", "num wide", "questions"),
    ]  # fmt: skip
    tables = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        groups = []
        for kind in dict.fromkeys(row["type"] for row in rows if row["dataset"] == dataset):
            here = [row for row in rows if (row["dataset"], row["type"]) == (dataset, kind)]
            groups.append((_kind(here[0]), [_bar(page, row, first=row is here[0]) for row in here]))
        tables.append(html([tag("h3", dataset), table(columns, groups, "types")]))
    return section("By type of question", tables, id="types") if rows else Html()


def _kind(row: Row) -> Html:
    return html([row["type"], row["name"] and tag("span", {"class": "metric"}, row["name"])])


def _bar(page: Page, row: Row, first: bool) -> list[Any]:
    words = f"{row['model']} on {row['type']}: {figure(row['score'])}"
    drawn = bar(SHARES, row["score"], row["ci_low"], row["ci_high"], colour(page, row["model"]), words)
    return [
        _kind(row) if first else "",
        model_name(page, row["model"]),
        drawn,
        figure(row["score"]),
        interval(row["ci_low"], row["ci_high"]),
        row["n"],
    ]


def abstention(page: Page) -> Html:
    """How often a model said that it cannot be known, where that was right and where it was not."""
    columns = [
        Column("model"), Column("recall", "num", "of the questions to abstain on, how many were abstained on"),
        Column(axis(SHARES), "plot"), Column("precision", "num", "of its abstentions, how many were right"),
        Column("with these in the mean", "num wide"), Column("n", "num wide"),
    ]  # fmt: skip
    groups = []
    for dataset in dict.fromkeys(row["dataset"] for row in page["abstention"]):
        rows = [row for row in page["abstention"] if row["dataset"] == dataset]
        groups.append((dataset, [_abstained(page, row) for row in rows]))
    lead = "Questions whose right answer is that it cannot be known. They are in no score above."
    return section("Abstention", table(columns, groups), id="abstention", lead=lead) if groups else Html()


def _abstained(page: Page, row: Row) -> list[Any]:
    ends = next((r for r in page["by_type"] if r["abstain"] and (r["dataset"], r["model"]) == (row["dataset"], row["model"])), None)
    low, high = (ends["ci_low"], ends["ci_high"]) if ends else (None, None)
    drawn = whisker(SHARES, row["abstention_recall"], low, high, colour(page, row["model"]), f"recall {figure(row['abstention_recall'])}")
    return [model_name(page, row["model"]), figure(row["abstention_recall"]), drawn, figure(row["abstention_precision"]),
            figure(row["overall"]), row["abstention_n"]]  # fmt: skip


def retrieval(page: Page) -> Html:
    """How much of the evidence was among what was retrieved, at each agent's own k."""
    rows: Sequence[Row] = [row for row in page["retrieval"] if row["own_k"]]
    columns = [
        Column("model"), Column("level"), Column("k", "num", "memories retrieved; * as many as a whole sample has"),
        Column(axis(SHARES), "plot"), Column("all found", "num", "recall_all@k: every piece of evidence is there"),
        Column("any found", "num", "recall_any@k: at least one is"), Column("NDCG", "num wide"), Column("n", "num wide", "questions"),
    ]  # fmt: skip
    groups = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        groups.append((dataset, [_retrieved(page, row) for row in rows if row["dataset"] == dataset]))
    lead = "Evidence among the retrieved memories, before anything was answered. Where k covers a whole sample (*), recall says nothing."
    return section("Retrieval", table(columns, groups), id="retrieval", lead=lead) if groups else Html()


def _retrieved(page: Page, row: Row) -> list[Any]:
    drawn = bar(
        SHARES, row["recall_all"], None, None, colour(page, row["model"]), f"{row['model']}: recall_all {figure(row['recall_all'])}"
    )
    k = f"{row['k']}{' *' if row['covered'] else ''}"
    return [model_name(page, row["model"]), row["level"], k, drawn, figure(row["recall_all"]), figure(row["recall_any"]),
            figure(row["ndcg"]), row["n"]]  # fmt: skip


def judged(page: Page) -> Html:
    """What an LLM judge says of the same answers, and beside it how often it accepts answers that are known to be wrong."""
    rows: Sequence[Row] = page["judged"]
    columns = [
        Column("model"), Column(axis(SHARES), "plot"), Column("judged", "num"), Column("95 % interval", "num wide"),
        Column("rule", "num", "the deterministic score of the same answers"),
        Column("lets in", "num", "share of answers known to be wrong that this judge accepts: specific ones / vague ones"),
        Column("agree", "num wide", "answers on which all votes agree"), Column("scored", "num wide", "answers that got a verdict"),
    ]  # fmt: skip
    groups = []
    for dataset, judge in dict.fromkeys((row["dataset"], row["judge"]) for row in rows):
        here = [row for row in rows if (row["dataset"], row["judge"]) == (dataset, judge)]
        votes = f"by {judge}, {count(here[0]['votes'], 'vote')}"
        groups.append((html([dataset, tag("span", {"class": "metric"}, votes)]), [_judged(page, row) for row in here]))
    warned = dict.fromkeys(f"{row['model']} on {row['dataset']}: {text}" for row in rows for text in row["warnings"])
    lead = "A judged score is worth what its judge is: \u201clets in\u201d says how much of what is known to be wrong it takes for right."
    told = tag("ul", {"class": "lead"}, [tag("li", text) for text in warned])
    return section("Judged", table(columns, groups), bool(warned) and told, id="judged", lead=lead) if rows else Html()


def _judged(page: Page, row: Row) -> list[Any]:
    judged, low, high = judged_interval(row)
    words = f"{row['model']}, {row['metric']}: judged {figure(judged)}"
    drawn = whisker(SHARES, judged, low, high, colour(page, row["model"]), words)
    lets_in = " / ".join(figure(row[name]["rate"], ".0%") for name in ("accepts_specific", "accepts_vague"))
    return [
        html([model_name(page, row["model"]), tag("span", {"class": "metric"}, row["metric"])]), drawn, tag("b", figure(judged)),
        interval(low, high), figure(row["rule_score"]), lets_in, figure(row["unanimous"], ".0%"),
        figure(row["coverage"], ".0%"),
    ]  # fmt: skip


def cost(page: Page) -> Html:
    """Tokens, calls and seconds for a question, writing and answering apart."""
    columns = [
        Column("model"), Column("part"), Column("calls", "num"), Column("prompt tokens", "num"), Column("completion tokens", "num"),
        Column("seconds", "num", "summed over calls: with many requests at a time this is not the wall clock"),
    ]  # fmt: skip
    groups = []
    for dataset in dict.fromkeys(row["dataset"] for row in page["cost"]):
        rows = [row for row in page["cost"] if row["dataset"] == dataset]
        shown = [row for row in rows if not (row["stage"] and _only(row, rows))]
        groups.append((dataset, [_cost(page, row, first=row is _first(row, shown)) for row in shown]))
    lead = (
        "Means for one question, greedy and sampled attempts alike; what was written once for several questions is shared out among them. "
        "Seconds run from asking a model to having its reply, waiting included."
    )
    return section("Cost of a question", table(columns, groups, "cost"), id="cost", lead=lead) if groups else Html()


def _first(row: Row, rows: Sequence[Row]) -> Row:
    return next(r for r in rows if r["model"] == row["model"])


def _only(row: Row, rows: Sequence[Row]) -> bool:
    """Whether a stage is all there is of its part: the part's own row says it already."""
    return sum(r["stage"] != "" for r in rows if (r["model"], r["part"]) == (row["model"], row["part"])) < 2


def _cost(page: Page, row: Row, first: bool) -> list[Any]:
    stage = row["stage"]
    part = tag("span", {"class": "stage"}, stage) if stage else row["part"]
    shown = [figure(row.get("calls"), ".2f"), figure(row.get("prompt_tokens"), ",.0f"), figure(row.get("completion_tokens"), ",.0f"),
             figure(row.get("seconds"), ".2f")]  # fmt: skip
    cells = [tag("span", {"class": "stage"}, value) if stage else value for value in shown]
    return [model_name(page, row["model"]) if first else "", part, *cells]
