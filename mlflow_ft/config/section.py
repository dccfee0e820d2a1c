"""What every section of the configuration is: small, frozen, strict, with a docstring for each field."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class InLine(str):
    """A list or a mapping where text is expected, as its text in one line: `{q_proj: 8}`."""

    __slots__ = ()


class Section(BaseModel):
    """A section: frozen; an unknown key is an error, and so is a number that is not finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )
