#!/usr/bin/env python3
"""Draw docs/images/concepts.svg: one training step, from an example to an optimizer step. Needs nothing but Python.

python docs/images/concepts.py > docs/images/concepts.svg
"""

from __future__ import annotations

from xml.sax.saxutils import escape

WIDTH, HEIGHT = 1000, 488
STYLE = """
  svg { background: #ffffff; font-family: ui-sans-serif, system-ui, "Helvetica Neue", Arial, sans-serif; }
  text { fill: #1f2933; font-size: 14px; } .small { font-size: 12px; fill: #52606d; } .name { font-weight: 600; }
  .lane { fill: #f5f7fa; } .data { fill: #fff4d6; stroke: #c99a2e; } .state { fill: #dcefe3; stroke: #3f8f5b; }
  .turn { fill: #dbe7fb; stroke: #3d6cb9; } .pay { fill: #f9dfe3; stroke: #b84a5c; } .step { fill: #e9e0f7; stroke: #7a55b5; }
  .box { stroke-width: 1.3; } .arrow { fill: none; stroke: #52606d; stroke-width: 1.4; marker-end: url(#head); }
  .gold { stroke: #c99a2e; stroke-dasharray: 5 4; } .back { stroke: #7a55b5; stroke-dasharray: 5 4; }
""".strip()

parts: list[str] = []


def box(kind: str, x: int, y: int, w: int, h: int, name: str, *lines: str) -> None:
    """A box with a name and smaller lines below it, all centred."""
    parts.append(f'<rect class="box {kind}" x="{x}" y="{y}" width="{w}" height="{h}" rx="7"/>')
    top = y + h / 2 - 8 * len(lines) + 5
    parts.append(f'<text class="name" x="{x + w / 2}" y="{top}" text-anchor="middle">{escape(name)}</text>')
    for at, line in enumerate(lines):
        parts.append(f'<text class="small" x="{x + w / 2}" y="{top + 17 * (at + 1)}" text-anchor="middle">{escape(line)}</text>')


def arrow(path: str, label: str = "", x: int = 0, y: int = 0, kind: str = "", anchor: str = "middle") -> None:
    parts.append(f'<path class="arrow {kind}" d="{path}"/>')
    if label:
        parts.append(f'<text class="small" x="{x}" y="{y}" text-anchor="{anchor}">{escape(label)}</text>')


def lane(y: int, h: int, title: str, who: str) -> None:
    parts.append(f'<rect class="lane" x="8" y="{y}" width="{WIDTH - 16}" height="{h}" rx="10"/>')
    parts.append(f'<text class="name" x="22" y="{y + 23}">{escape(title)}</text>')
    parts.append(f'<text class="small" x="22" y="{y + 41}">{escape(who)}</text>')


def draw() -> str:
    lane(8, 118, "1  Show", "the env")
    box("data", 150, 34, 150, 66, "example", "context, question,", "gold answers")
    box("data", 400, 34, 150, 66, "view", "what the agent may", "see: never gold")
    box("data", 650, 34, 150, 66, "events", "chunks, sessions", "or turns, in order")
    arrow("M300 67 H394", "observe", 347, 59)
    arrow("M550 67 H644", "events", 597, 59)

    lane(138, 214, "2  Act", "agent, G times")
    for at, x in enumerate((150, 400, 650)):
        box("state", x, 178, 92, 58, f"memory {at}" if at else "memory 0", "start" if not at else f"after event {at}")
        box("turn", x + 128, 178, 92, 58, "write" if at < 2 else "read", f"event {at + 1}" if at < 2 else "question")
        arrow(f"M{x + 92} 207 H{x + 122}")
        arrow(f"M{x + 220} 207 H{x + 244}")
    box("data", 900, 178, 80, 58, "answer")
    arrow("M700 100 C700 150 325 120 325 172")
    arrow("M725 100 C725 150 575 130 575 172")
    box(
        "turn",
        278,
        276,
        592,
        60,
        "a turn: one model call, exactly as sampled",
        "stage · prompt ids · response ids · log-probs · what of it is trained (its role)",
    )
    for x in (324, 574, 824):
        arrow(f"M{x} 236 V270")

    lane(364, 116, "3  Pay and learn", "env, then trainer")
    box("pay", 806, 398, 160, 60, "rewards", "one per attempt", "and stage")
    box("pay", 600, 398, 160, 60, "credit", "reward - group mean,", "to every turn")
    box("step", 380, 398, 160, 60, "pack", "the sampled tokens,", "in micro-batches")
    box("step", 160, 398, 160, 60, "loss, optimizer", "clipped ratio;", "one update")
    arrow("M940 236 V392", "compute_reward", 932, 366, "", "end")
    arrow("M806 428 H766")
    arrow("M600 428 H546")
    arrow("M380 428 H326")
    arrow("M225 34 V22 H987 V428 H972", "gold answers: for the env only", 976, 38, "gold", "end")
    arrow("M240 398 C240 340 250 306 272 306", "the new weights sample the next step", 252, 386, "back", "start")
    body = "\n".join(parts)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"
 aria-label="One training step: an example becomes a view and events; the agent writes memory and reads an answer in turns;
 the env rewards; credit, pack, loss and optimizer make new weights.">
<defs><style>{STYLE}</style><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0 L8 4 L0 8 z" fill="#52606d"/></marker></defs>
{body}
</svg>
"""


if __name__ == "__main__":
    print(draw(), end="")
