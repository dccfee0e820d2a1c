"""Tokenizers as the well-known families have them, each a few hundred pieces small, and what a label ought to be.

bytes                        GPT-2's: bytes, split by its expression
bytes, own split             Llama 3's, Qwen's: punctuation and the line ends behind it become one piece
bytes, own split, trimmed    and a post-processor that leaves spaces out of the offsets
pieces, always / first       sentencepiece: a space before every stretch between special tokens, or before the first
pieces, none                 Gemma's: no space is added
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mlflow_ft.engine.tokens.masking import IGNORED, Tokenised
from tests.engine.templates import FAMILIES
from tests.engine.templates.script import Family, Script

LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
SPLIT = LETTERS + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXT = (
    "user assistant system model tool INST end im_end start think the red green blue round heavy apple stone river",
    'def f(x):\n    return {"a": 1, "b": [x, 2]}\n\n\n    pass\n\t\tx += 1;\n  ok  \n\n',
    "What is it? It is. No: yes!\n- one\n- two\n```python\nprint('x')\n```\n:( :( x:(y",
    "Grüße, naïve café 你好 世界 これは 😀 👍🏽\n",
) * 9
KINDS = (
    "bytes",
    "bytes, own split",
    "bytes, own split, trimmed",
    "pieces, always",
    "pieces, always, by the splitter",
    "pieces, first",
    "pieces, none",
)


def _parts(kind: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=kind.startswith("pieces"), fuse_unk=True, unk_token="<unk>"))
    if kind.startswith("bytes"):
        split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
        own = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        usual = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(own) if "own split" in kind else usual
        tokenizer.decoder = decoders.ByteLevel()
    elif kind == "pieces, always":  # Llama 2 as it was first converted: the space comes from a normaliser
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif kind == "pieces, always, by the splitter":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    elif kind == "pieces, first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return tokenizer


@cache
def _trained(kind: str) -> str:
    tokenizer = _parts(kind)
    special = ["<unk>", "<pad>"]
    if kind.startswith("bytes"):
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        special += [f"<0x{code:02X}>" for code in range(256)]
        alphabet = list("▁abcdefghijklmnopqrstuvwxyz")
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=special,
        initial_alphabet=alphabet,
        limit_alphabet=256 if kind.startswith("bytes") else 60,
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer.to_str()


def make(
    jinja: str,
    added: Iterable[str | AddedToken],
    *,
    eos: str,
    bos: str | None = None,
    pad: str = "<pad>",
    kind: str = "bytes",
) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind; it puts `bos` before a text if it may."""
    tokenizer = Tokenizer.from_str(_without_bytes_as_added(_trained(kind)))
    as_tokens = [
        token if isinstance(token, AddedToken) else AddedToken(token, special=True, normalized=False) for token in added
    ]
    tokenizer.add_tokens([token for token in as_tokens if not token.special])
    tokenizer.add_special_tokens([token for token in as_tokens if token.special])
    last = [processors.ByteLevel(trim_offsets=True)] if kind.endswith("trimmed") else []
    if bos:
        begin = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
        last.append(begin)
    if last:
        tokenizer.post_processor = processors.Sequence(last)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token=pad, eos_token=eos, bos_token=bos
    )
    fast.chat_template = jinja
    return fast


def _without_bytes_as_added(text: str) -> str:
    """Byte tokens are not added tokens, although the trainer makes them so."""
    state = json.loads(text)
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    return json.dumps(state)


@cache
def of(name: str, kind: str = "") -> PreTrainedTokenizerFast:
    """The tokenizer of a family, or one of another kind with the family's template and tokens."""
    return of_family(FAMILIES[name], kind)


def of_family(family: Family, kind: str = "") -> PreTrainedTokenizerFast:
    return make(
        family.jinja, family.tokens, eos=family.eos, bos=family.bos, pad=family.pad, kind=kind or family.kind
    )  # fmt: skip


def labels(row: Tokenised, script: Script, learned: Iterable[int]) -> list[int]:
    """What every label ought to be, from the places of the tokens and of the speeches alone.

    A token is learned where each of its letters is said in a turn that is learned. One of white space alone is where
    all of it stands in such a turn.
    """
    spoken = bytearray(len(script.text) + 1)
    for turn, (begin, end) in script.speeches().items():
        if turn in set(learned):
            spoken[begin:end] = b"\1" * (end - begin)
    wanted, before = [], 0
    for token, (begin, end) in zip(row.ids, row.offsets, strict=True):
        start = min(begin, before) if end > before else begin
        letters = [at for at in range(start, end) if not script.text[at].isspace()]
        assert len({spoken[at] for at in letters}) < 2, f"{script.text[start:end]!r} is said by two"
        said = all(spoken[at] for at in letters or range(start, end)) if end > start else spoken[end]
        wanted.append(token if said else IGNORED)
        before = max(before, end)
    return wanted
