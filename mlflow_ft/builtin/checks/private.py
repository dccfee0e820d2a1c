"""Checks for what must not be learned: secrets and personal data. A message never shows one in full."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator

from mlflow_ft import Checked
from mlflow_ft.builtin.checks.seen import said
from mlflow_ft.builtin.checks.words import mask

_SHOWN = 3
"""Matches named per row."""


def secret(row: Checked) -> str | None:
    """Keys, tokens and passwords that look real."""
    return _matches(row, secrets)


def personal_data(row: Checked) -> str | None:
    """E-mail addresses, phone numbers, card and account numbers that look real."""
    return _matches(row, personal)


def _matches(row: Checked, finder: Callable[[str], Iterator[tuple[str, str]]]) -> str | None:
    masked = dict.fromkeys(f"{kind} {mask(value)}" for _, text in said(row) for kind, value in finder(text))
    if not masked:
        return None
    more = f" and {len(masked) - _SHOWN} more" if len(masked) > _SHOWN else ""
    return ", ".join(list(masked)[:_SHOWN]) + more


_TOKENS = (
    ("AKIA", "AWS key", r"\bAKIA[A-Z2-7]{16}\b"),
    ("ASIA", "AWS key", r"\bASIA[A-Z2-7]{16}\b"),
    ("PRIVATE KEY", "private key", r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----[^-]{0,400}?([\w+/]{40})"),
    *((f"{kind}_", "GitHub token", rf"\b{kind}_[A-Za-z0-9]{{36,}}\b") for kind in ("ghp", "gho", "ghu", "ghs", "ghr")),
    ("github_pat_", "GitHub token", r"\bgithub_pat_\w{40,}\b"),
    ("glpat-", "GitLab token", r"\bglpat-[\w-]{20,}"),
    ("xox", "Slack token", r"\bxox[abeoprs]-[\w-]{20,}"),
    ("hooks.slack.com", "Slack webhook", r"hooks\.slack\.com/services/T\w{6,}/B\w{6,}/\w{16,}"),
    ("sk-ant-", "Anthropic key", r"\bsk-ant-[\w-]{24,}"),
    ("sk-", "OpenAI key", r"\bsk-(?!ant-)(?:proj-|svcacct-|admin-)?\w[\w-]{24,}"),
    ("AIza", "Google key", r"\bAIza[\w-]{35}(?![\w-])"),
    ("GOCSPX-", "Google secret", r"\bGOCSPX-[\w-]{28}"),
    ("hf_", "Hugging Face token", r"\bhf_[A-Za-z0-9]{30,}\b"),
    ("k_live_", "Stripe key", r"\b[rs]k_live_[A-Za-z0-9]{16,}"),
    ("eyJ", "JSON web token", r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{16,}"),
)
_COMPILED = tuple((marker, kind, re.compile(pattern)) for marker, kind, pattern in _TOKENS)
_ASSIGNED = re.compile(
    r"(?:pass(?:word|wd|phrase)?|pwd|secret(?:[_-]?(?:access[_-]?)?key)?|api[_-]?key|(?:access|auth|bearer)[_-]?token|"
    r"private[_-]?key)[\"']?\s*(?:=|:|=>)\s*[\"']([^\"'\s]{8,200})[\"']",
    re.IGNORECASE,
)
_ASSIGNED_MARKERS = ("pass", "pwd", "secret", "key", "token")
_IN_URL = re.compile(r"[a-z]://[^\s/:@]{1,64}:([^\s/:@]{8,200})@", re.IGNORECASE)
_PLACEHOLDER = re.compile(
    r"example|your|placeholder|change|xxx|\*\*\*|\.\.\.|<|\{|\$\(|%\(|dummy|sample|fake|test|demo|insert|here|foo|"
    r"pass|secret|token|key|user|admin|qwert|letmein|abcdef|123456|987654|redacted|hidden",
    re.IGNORECASE,
)
_BITS = 3.0
"""Least bits per character of a secret: "aaaaaaaa" has none, eight different characters have three."""


def secrets(text: str) -> Iterator[tuple[str, str]]:
    """Kind and value of every secret in a text."""
    for marker, kind, pattern in _COMPILED:
        if marker in text:
            for match in pattern.finditer(text):
                value = match[match.lastindex or 0]
                if _bits(value) > _BITS and not _is_made_up(value):
                    yield kind, value
    lowered = text.lower()
    if any(marker in lowered for marker in _ASSIGNED_MARKERS):
        yield from (("password", match[1]) for match in _ASSIGNED.finditer(text) if _is_password(match[1]))
    if "://" in text and "@" in text:
        yield from (("password in a URL", match[1]) for match in _IN_URL.finditer(text) if _is_password(match[1]))


def _is_made_up(token: str) -> bool:
    lowered = token.lower()
    return any(word in lowered for word in ("example", "xxxx", "your", "placeholder", "1234567890abc", "abcdefghij"))


def _is_password(value: str) -> bool:
    mixed = any(character.isdigit() for character in value) and any(character.isalpha() for character in value)
    return mixed and _bits(value) >= _BITS and not _PLACEHOLDER.search(value)


def _bits(value: str) -> float:
    """Shannon entropy, in bits per character."""
    return -sum(count / len(value) * math.log2(count / len(value)) for count in Counter(value).values())


_EMAIL = re.compile(r"(?<![\w.+-])([\w.+-]{1,64})@((?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24})(?![\w@(\[-])")
_DOMAINS = frozenset(
    {
        *(
            "com",
            "org",
            "net",
            "edu",
            "gov",
            "mil",
            "int",
            "info",
            "biz",
            "name",
            "pro",
            "app",
            "dev",
            "tech",
            "online",
        ),
        *("site", "xyz", "store", "cloud", "shop", "club", "email", "live", "world", "group", "agency", "company"),
        *("solutions", "services", "academy", "digital", "media", "network", "systems", "health", "care", "law"),
        *("finance", "consulting", "design", "studio", "blog", "news", "space", "website", "berlin", "london", "paris"),
    }
)
"""Top-level domains of more than two letters; `x@self.weight` is not an address."""
_RESERVED = frozenset({"example", "test", "invalid", "localhost", "local"})
_PLACEHOLDER_NAME = re.compile(
    r".*(?:example|domain).*|(?:your|my|some|our)?-?(?:company|e?mail|website|site|organi[sz]ation|business|server|host)|"
    r"test|sample|xyz|abc|acme|foo|bar"
)
_NO_ONE = re.compile(
    r"(?:no|do-?_?\.?not)-?_?\.?reply|git|postmaster|mailer-daemon|someone|nobody|foo|bar|abc|xyz|x+|"
    r"(?:your|my)?[._-]?(?:e-?mail|name|user(?:name)?|address)\d*|your[._-]?\w*",
    re.IGNORECASE,
)
_PHONE = re.compile(
    r"(?<![\w.+/=*^-])(?:\+[1-9]\d{0,2}(?:[ .-]?\(\d{1,5}\)|[ .-]?\d{1,5}){2,6}+|"
    r"(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.-])[2-9]\d\d[ .-]\d{4})(?!\w|[./=*^-]\d)"
)
_TOLL_FREE = ("800", "833", "844", "855", "866", "877", "888", "900")
_COUNTRY = re.compile(
    r"1|7|2(?:[07]|[1-689]\d)|3(?:[0-469]|[578]\d)|4(?:[013-9]|2\d)|5(?:[1-8]|[09]\d)|6(?:[0-6]|[789]\d)|"
    r"8(?:[1246]|[0578]\d)|9(?:[0-58]|[679]\d)"
)
_SEPARATED = re.compile(r"\+\d{1,4}[ .(-]")
_CARD = re.compile(
    r"(?<![\w.+/-])(?<!\d,)(?:\d{4}([ -]?)\d{4}\1\d{4}\1\d{4}|3[47]\d\d([ -]?)\d{6}\2\d{5})(?!\w|[.,/-]\d)"
)
_ISSUER = re.compile(r"4|5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3[47]|6(?:011|5|4[4-9])|35(?:2[89]|[3-8])")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?(?!\w)")


def personal(text: str) -> Iterator[tuple[str, str]]:
    """Kind and value of every personal datum in a text."""
    if "@" in text:
        yield from (("e-mail address", match[0]) for match in _EMAIL.finditer(text) if _is_of_someone(*match.groups()))
    if not _LONG_NUMBER.search(text):
        return
    yield from (("phone number", match[0]) for match in _PHONE.finditer(text) if is_phone(match[0]))
    yield from (("card number", match[0]) for match in _CARD.finditer(text) if is_card(match[0]))
    yield from (("IBAN", number) for match in _IBAN.finditer(text) for number in _accounts(match[0]))


_LONG_NUMBER = re.compile(r"\d[\d ().-]{6,}\d")
"""Every phone, card or account number contains this."""


def _is_of_someone(local: str, domain: str) -> bool:
    labels = domain.lower().split(".")
    if labels[-1] in _RESERVED or (len(labels[-1]) > 2 and labels[-1] not in _DOMAINS):
        return False
    name = labels[-3] if len(labels) > 2 and len(labels[-2]) < 4 else labels[-2]
    return not _PLACEHOLDER_NAME.fullmatch(name) and not _NO_ONE.fullmatch(local)


def is_phone(number: str) -> bool:
    """Whether a number that looks right can be real: a country code, long enough, not reserved for fiction."""
    digits = re.sub(r"\D", "", number)
    if "2345678" in digits or "9876543" in digits or len(set(digits)) < 4:
        return False
    if not number.startswith("+"):
        return _is_american(digits[-10:])
    if not _COUNTRY.match(digits) or not 9 <= len(digits) <= 15:
        return False
    if digits[0] == "1":
        return len(digits) == 11 and _is_american(digits[1:])
    return bool(_SEPARATED.match(number)) or (len(digits) <= 13 and "0000" not in digits)  # else it is a sum: +1000000


def _is_american(digits: str) -> bool:
    """Area codes and exchanges begin with 2 to 9; no area is 555, toll-free is not personal, 555-01xx is fiction."""
    if digits.startswith(_TOLL_FREE):
        return False
    return bool(re.fullmatch(r"(?!555)[2-9]\d\d(?!55501)[2-9]\d{6}", digits))


def is_card(number: str) -> bool:
    """Whether a number that looks right has a known issuer and the right check digit."""
    digits = re.sub(r"\D", "", number)
    return bool(_ISSUER.match(digits)) and len(set(digits)) > 1 and luhn(digits)


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1)."""
    doubled = (int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits)))
    return sum(value // 10 + value % 10 for value in doubled) % 10 == 0


def _accounts(text: str) -> list[str]:
    """The account number at the beginning of a text: words in capitals may follow it."""
    ends = [*(space.start() for space in re.finditer(" ", text)), len(text)]
    return [text[:end] for end in ends if is_iban(text[:end])][-1:]


def is_iban(number: str) -> bool:
    """Whether the check digits of an account number are right (ISO 13616: mod 97)."""
    plain = number.replace(" ", "")
    if not 15 <= len(plain) <= 34 or sum(character.isdigit() for character in plain) < 8:
        return False
    return int("".join(str(int(character, 36)) for character in plain[4:] + plain[:4])) % 97 == 1
