"""The base class of every section of the configuration: small, frozen, strict, with a docstring for each field."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class InLine(str):
    """A list or a mapping where text is expected, as text on one line: `{q_proj: 8}`."""

    __slots__ = ()


class Section(BaseModel):
    """A frozen section; an unknown key is an error, and so is a NaN or an infinite number."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )
