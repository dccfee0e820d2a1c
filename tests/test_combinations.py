"""Every objective with every kind of adapter and quantisation does what docs/combinations.md says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import combinations

SAID = combinations.read(combinations.PAGE.read_text())


def test_the_page_is_as_it_is_written() -> None:
    assert combinations.page(SAID) == combinations.PAGE.read_text()
    assert set(SAID) == set(combinations.every())
    assert sum(told in ("merges", "works") for told in SAID.values()) > 200
    assert not [told for told in SAID.values() if told.startswith("FAILED")]


def often(objective: str, adapter: str, quantise: str) -> bool:
    """Whether `make test` tries it; `make combinations` tries all.

    Every refusal, every objective alone, with lora and with qlora, and every adapter with a preference.
    `tests/test_adapters.py` trains every adapter with sft.
    """
    if SAID[objective, adapter, quantise] not in ("merges", "works"):
        return True
    if adapter in ("none", "lora"):
        return quantise in ("none", "nf4") or objective in ("sft", "dpo")
    return quantise == "none" and objective == "dpo"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "adapter", "quantise"),
    [pytest.param(*names, marks=() if often(*names) else pytest.mark.long) for names in combinations.every()],
)
def test_a_combination_does_what_the_page_says(
    tiny_model: Path, tmp_path: Path, objective: str, adapter: str, quantise: str
) -> None:
    outcome = combinations.outcome(objective, adapter, quantise, model=tiny_model, folder=tmp_path / "job")
    assert outcome == SAID[objective, adapter, quantise]
