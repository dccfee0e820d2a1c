"""The page: verdict first, then scores, curves, answers side by side, data, parity, memory and speed."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft.data import drawings, pages
from mlflow_ft.forms import changes
from mlflow_ft.forms.answers import kind, rank
from mlflow_ft.forms.card.markdown import as_text, clean, number
from mlflow_ft.values.report import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mlflow_ft.forms.report.facts import Answer, Facts
    from mlflow_ft.values import Score

TEMPLATES = Path(__file__).parent / "templates"
SHOWN = 20
"""Answers on the page."""
LONGEST = 2000
"""Characters of one text."""
WORDS = re.compile(r"\s+|\w+|[^\w\s]")
LEARNED = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)
MASK = 1500
COSTS = {
    "memory/measured_gib": "most memory of the training, GiB",
    "memory/predicted_gib": "estimated before it, GiB",
    "train/tokens_per_second": "learned and other tokens a second",
    "train/step_time": "seconds a step",
}
NOT_CHOSEN = -1
TONES = {"broken": "error", "differs": "warn", "fixed": "ok", "as before": "ok"}
TRAINING = {
    "mlflow_ft.stopped_early": "training ended early",
    "mlflow_ft.chosen_checkpoint": "weights kept",
    "mlflow_ft.training_findings": "found in the training",
}
PARITY = re.compile(r"parity/(.+)/(kl_mean|kl_max|top1_agreement|greedy_agreement)")


def as_page(facts: Facts) -> str:
    """The page of a run."""
    worse = facts.tags.get("mlflow_ft.worse", "")
    return drawings.page(
        "report.html",
        TEMPLATES,
        title=clean(facts.run.info.run_name or facts.run.info.run_id),
        verdict=worse or (facts.verdict.words if facts.verdict else "Not scored row by row"),
        tone="error" if worse else "ok" if facts.verdict and facts.verdict.better else "warn",
        aim=facts.verdict
        and {
            "name": facts.verdict.score,
            "base": number(facts.verdict.base),
            "tuned": number(facts.verdict.tuned),
            "change": str(facts.by_score[facts.verdict.score]),
        },
        error=clean(facts.tags.get("mlflow_ft.error", ""), longest=LONGEST),
        asked=list(_asked(facts)),
        scores=list(_scores(facts)),
        plots=list(_plots(facts)),
        answers=[_answer(answer) for answer in chosen(facts.answers)],
        answered=len(facts.answers),
        mask=_mask(facts.mask),
        findings=[check for check in facts.quality.get("checks", ()) if check["count"] and check["severity"] != "info"],
        checked=len(facts.quality.get("checks", ())),
        percent=percent,
        lengths=_lengths(facts.quality),
        limits=[as_text(line.removeprefix("- ")) for line in facts.limits.splitlines() if line.startswith("- ")],
        parity=_parity(facts.metrics),
        costs=[(words, number(facts.metrics[name])) for name, words in COSTS.items() if name in facts.metrics],
    )


def _asked(facts: Facts) -> Iterator[tuple[str, str]]:
    """What the run is, in names and values."""
    run, params = facts.run, facts.run.data.params
    yield "method", params.get("cfg.method", "")
    yield "base", f"{facts.tags.get('mlflow_ft.base_origin') or facts.tags.get('mlflow_ft.base_model', '')}"
    yield "data", params.get("cfg.data.path", "")
    counts: dict[str, Any] = {**facts.metrics, **params}  # early versions logged counts as metrics
    if "data/train/rows" in counts:
        rows, held = (f"{float(counts.get(f'data/{side}/rows', 0)):,.0f}" for side in ("train", "eval"))
        yield "rows", f"{rows} to train, {held} held out"
    yield from ((name, clean(facts.tags[tag], longest=LONGEST)) for tag, name in TRAINING.items() if tag in facts.tags)
    yield "started", facts.started
    yield "run", run.info.run_id
    if code := facts.tags.get("mlflow_ft.git_commit"):
        yield "git commit", code


def _scores(facts: Facts) -> Iterator[Mapping[str, Any]]:
    """Each score of both models, in numbers and as bars."""
    base = {score.name: score.value for score in facts.base}
    for score in facts.tuned:
        before, change = base.get(score.name), facts.by_score.get(score.name, changes.Change())
        yield {
            "name": score.name,
            "base": number(before),
            "tuned": number(score.value),
            "change": str(change),
            "bars": None if before is None else _bars(before, score, change),
        }


def _bars(before: float, score: Score, change: changes.Change) -> Mapping[str, Any] | None:
    """Both values in percent of the longest bar, and from where to where the tuned model's may lie.

    The longest bar is 1 for a share, else the largest value. Values that are not finite, below 0 or all 0 have no bars.
    """
    ends = change.around(before) or ()
    both = (before, score.value)
    if not all(math.isfinite(value) and value >= 0 for value in both):
        return None
    rows = [value for value in score.rows if value is not None]
    share = bool(rows) and all(0 <= value <= 1 for value in (*rows, *both)) and not score.name.endswith("loss")
    if not (whole := 1.0 if share else max(*both, *ends)):
        return None
    low, high = (round(100 * min(max(end / whole, 0), 1), 1) for end in ends) if ends else (0.0, 0.0)
    return {
        "widths": [round(100 * value / whole, 1) for value in both],
        "interval": {"left": low, "width": round(high - low, 1)} if ends else None,
    }


# --- curves


def _plots(facts: Facts) -> Iterator[Mapping[str, str]]:
    losses = {"training": facts.curve("train/loss"), "held out": facts.curve("eval/loss")}
    if any(len(curve) > 1 for curve in losses.values()):
        kept = int(facts.metrics.get("train/chosen_step", NOT_CHOSEN))
        drawing = drawings.svg("loss", lambda axes: _draw_losses(axes, losses, kept), whole=False)
        yield {"svg": drawing, "caption": "loss by optimizer step (nats per learned token)"}
    rate = facts.curve("train/learning_rate")
    if len(set(rate.values())) > 1:
        drawing = drawings.svg("rate", lambda axes: _draw_line(axes, rate, "learning rate"), whole=False)
        yield {"svg": drawing, "caption": "learning rate by optimizer step"}


def _draw_losses(axes: Axes, losses: Mapping[str, Mapping[int, float]], kept: int) -> None:
    """Both curves, the lowest held-out loss, and the checkpoint whose weights were kept, if one was chosen."""
    for (name, curve), colour in zip(losses.items(), (drawings.FIRST, drawings.SECOND), strict=True):
        if curve:
            marker = "o" if len(curve) < 30 else None
            axes.plot(list(curve), list(curve.values()), color=colour, label=name, marker=marker, markersize=3)
    held = losses["held out"]
    if held:
        best = min(held, key=lambda step: held[step])
        label = f"lowest held-out loss, step {best:,}" + (": these weights were kept" if kept == best else "")
        axes.axvline(best, color=drawings.MARK, linewidth=0.9, linestyle=":", label=label)
        if kept in held:
            label = "" if kept == best else f"the weights that were kept, step {kept:,}"
            axes.plot(kept, held[kept], "o", color=drawings.MARK, markersize=7, fillstyle="none", label=label)
    axes.legend(frameon=False, labelcolor=drawings.INK, fontsize=8)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")


def _draw_line(axes: Axes, curve: Mapping[int, float], name: str) -> None:
    axes.plot(list(curve), list(curve.values()), color=drawings.FIRST)
    axes.set_xlabel("step")
    axes.set_ylabel(name)


# --- answers


def chosen(answers: Sequence[Answer]) -> list[Answer]:
    """The answers to look at first: what training broke, what is still wrong, what it fixed, then the rest."""
    groups: dict[int, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(rank(answer), []).append(answer)
    first: list[Answer] = []
    for group in sorted(groups):  # some of each kind, the worst first
        first += groups[group][: SHOWN // 4]
    rest = [answer for group in sorted(groups) for answer in groups[group][SHOWN // 4 :]]
    return sorted([*first, *rest[: SHOWN - len(first)]], key=rank)


def _answer(answer: Answer) -> dict[str, Any]:
    texts = {name: shortened(answer.get(name)) for name in ("prompt", "expected", "base", "tuned")}
    same = "as before" if texts["base"] == texts["tuned"] else "changed"
    return {
        "prompt": texts["prompt"],
        "expected": texts["expected"],
        "base": marked(texts["base"], texts["expected"]),
        "tuned": marked(texts["tuned"], texts["expected"]),
        "kind": kind(answer) if texts["expected"] else same,
        "tone": TONES[kind(answer)] if texts["expected"] else "dim",
    }


def shortened(value: Any) -> str:
    """A text for the page."""
    text = "" if value is None else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def marked(text: str, expected: str) -> list[tuple[bool, str]]:
    """The pieces of a text, and whether each is not in what is expected; nothing is marked without an expectation."""
    if not expected:
        return [(False, text)]
    words, wanted = WORDS.findall(text), WORDS.findall(expected)
    pieces: list[tuple[bool, str]] = []
    for tag, begin, end, _, _ in difflib.SequenceMatcher(None, words, wanted, autojunk=False).get_opcodes():
        if begin < end:
            pieces.append((tag != "equal", "".join(words[begin:end])))
    return pieces


def _lengths(quality: Mapping[str, Any]) -> list[Mapping[str, str]]:
    """The histogram of the rows' lengths."""
    return [plot for check in quality.get("checks", ()) if check["name"] == "length" for plot in pages.plots(check)]


def _mask(text: str) -> list[tuple[bool, str]]:
    """The beginning of the mask page, in pieces; those that are learned are marked."""
    pieces, place = [], 0
    for match in LEARNED.finditer(text := text[:MASK]):
        pieces += [(False, text[place : match.start()]), (True, match[1])]
        place = match.end()
    return [piece for piece in [*pieces, (False, text[place:])] if piece[1]]


# --- parity


def _parity(metrics: Mapping[str, float]) -> list[tuple[str, dict[str, str]]]:
    """For each form, how far it is from the trained model."""
    found: dict[str, dict[str, str]] = {}
    for name, value in sorted(metrics.items()):
        if match := PARITY.fullmatch(name):
            found.setdefault(match[1], {})[match[2]] = number(value)
    return list(found.items())
