"""The model card: the README.md of every packaged form and the description of its version, written from the run."""

from __future__ import annotations

from mlflow_ft.forms.card import licence, limits, load, sections
from mlflow_ft.forms.card.facts import About
from mlflow_ft.forms.card.front import matter
from mlflow_ft.forms.card.markdown import plain, spaced

__all__ = ["CARD", "About", "description", "limits_in", "text", "write"]

CARD = "README.md"
LONGEST = 5000
"""Characters of a description: the size of the registry's column; PostgreSQL refuses longer ones."""
REST = "The rest of this card ({}) is in `artifacts/model/README.md` of this version."


def write(about: About) -> None:
    """Write the card into the form's folder."""
    (about.folder / CARD).write_text(text(about), encoding="utf-8")


def text(about: About) -> str:
    """The whole card: front matter for the Hub, the title and the sections, the most asked-for first."""
    known = licence.of(about.base)
    parts = {
        "Scores": sections.scores(about),
        "Parity": sections.parity(about),
        "Limits": limits.limits(about),
        "Licence": load.licence(known),
        "Data": sections.data(about),
        "How to load": load.load(about),
        "Training": sections.training(about),
    }
    body = "".join(f"\n## {title}\n\n{section}\n" for title, section in parts.items())
    opening = warning(about) + sections.opening(about)
    return f"---\n{matter(about, known)}\n---\n\n# {plain(about.name)}\n\n{opening}\n{body}"


def warning(about: About) -> str:
    """What a reader must see first; "" if there is nothing."""
    worse = about.scores.worse
    return f"**Worse than its base.** {plain(worse.sentence)}.\n\n" if worse and worse.sure else ""


def limits_in(card: str) -> str:
    """The section of a card on what was not shown, as a Markdown list."""
    return card.partition("\n## Limits\n\n")[2].partition("\n\n## ")[0].strip()


def description(card: str) -> str:
    """The card without its front matter, as a version's description; if too long, it is cut before a section."""
    body = card.partition("\n---\n")[2].strip() if card.startswith("---\n") else card.strip()
    body = spaced(body)
    if len(body) <= LONGEST:
        return body
    first, *rest = body.split("\n## ")
    left_out: list[str] = []
    while rest:
        left_out.insert(0, rest.pop().partition("\n")[0])
        shorter = "\n\n".join(["\n## ".join([first, *rest]).rstrip(), REST.format(", ".join(left_out))])
        if len(shorter) <= LONGEST:
            return shorter
    note = REST.format(", ".join(left_out))
    return f"{first[: LONGEST - len(note) - 2]}\n\n{note}"[:LONGEST]
