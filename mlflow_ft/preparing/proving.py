"""The expensive part of preparing rows: template, tokens, proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_ft.rows import Encoded, Example

if TYPE_CHECKING:
    from mlflow_ft.engine.tokens.masking import Encoder, Tokenised
    from mlflow_ft.engine.tokens.render import MaskError


@dataclass(frozen=True, kw_only=True)
class ProvedRow:
    """A row as the trainer sees it, with its mask proved."""

    encoded: Encoded
    length: int
    """In tokens, before any cut; for a preference, with the longer answer."""
    learnable: bool
    """Whether any token is learned; for a preference, in both answers."""
    ends: tuple[int, ...]
    """The tokens that end the assistant's turns."""
    unwritten: int = 0
    """Learned turns whose thoughts the template leaves out."""


def prove(encoder: Encoder, examples: Sequence[Example]) -> list[ProvedRow | MaskError]:
    """Tokenise rows and prove their masks; a row whose mask cannot be proved becomes its error."""
    return [
        summary(result) if isinstance(result, list) else result for result in encoder.tokenise(examples, offsets=False)
    ]


def summary(conversations: Sequence[Tokenised]) -> ProvedRow:
    """A row's conversations as one row."""
    from mlflow_ft.engine.tokens import masking

    encoded = masking.joined(conversations)
    parts = (encoded, encoded.rejected) if encoded.rejected else (encoded,)
    return ProvedRow(
        encoded=encoded,
        length=max(conversation.length for conversation in conversations),
        learnable=all(part.supervised for part in parts),
        ends=tuple(end for conversation in conversations for end in conversation.ends),
        unwritten=sum(len(conversation.unwritten) for conversation in conversations),
    )
