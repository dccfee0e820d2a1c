"""Secrets and data about persons: found, never shown, and not where there are none."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_ft import Checked, Example
from mlflow_ft.builtin.checks import private

ALPHANUMERIC = string.ascii_letters + string.digits
CAPITALS = string.ascii_uppercase + "234567"
MADE = random.Random(5)


def made(count: int, signs: str = ALPHANUMERIC) -> str:
    """Made up anew by every run of the tests, so that no secret stands in the source."""
    return "".join(MADE.choice(signs) for _ in range(count))


def row(text: str) -> Checked:
    messages = ({"role": "user", "content": "What is it?"}, {"role": "assistant", "content": f"It is {text}, I think."})
    return Checked(file="rows.jsonl", line=1, index=0, example=Example(messages=messages), tokens=9)


SECRETS = {
    f"AKIA{made(16, CAPITALS)}": "AWS key",
    f"ASIA{made(16, CAPITALS)}": "AWS key",
    f"-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA{made(48)}\n{made(64)}\n": "private key",
    f"-----BEGIN PRIVATE KEY-----\\n{made(64)}\\n": "private key",
    f"ghp_{made(36)}": "GitHub token",
    f"github_pat_{made(22)}_{made(59)}": "GitHub token",
    f"glpat-{made(20)}": "GitLab token",
    f"xoxb-{made(12, string.digits)}-{made(24)}": "Slack token",
    f"https://hooks.slack.com/services/T{made(8, CAPITALS)}/B{made(8, CAPITALS)}/{made(24)}": "Slack webhook",
    f"sk-{made(48)}": "OpenAI key",
    f"sk-proj-{made(60)}": "OpenAI key",
    f"sk-ant-api03-{made(60)}": "Anthropic key",
    f"AIza{made(35)}": "Google key",
    f"GOCSPX-{made(28)}": "Google secret",
    f"hf_{made(34)}": "Hugging Face token",
    f"sk_live_{made(24)}": "Stripe key",
    f"rk_live_{made(24)}": "Stripe key",
    f"eyJ{made(20)}.eyJ{made(40)}.{made(43)}": "JSON web token",
    'password = "g7#Kq9!vR2zW"': "password",
    "aws_secret_access_key = 'wJ8r/K7M+DgbPxRfiCYzEXnQ5tLh3Vu2Sa9Bo1Tm'": "password",
    '{"api_key": "f3b1c07d9e8a42658cbd7e90aa315f6c"}': "password",
    "postgres://app:zT8kLq2Wp9@db.corp.io/x": "password in a URL",
}


@pytest.mark.parametrize("text", SECRETS, ids=SECRETS.values())
def test_a_secret_is_found_and_not_shown(text: str) -> None:
    told = private.secret(row(text))
    assert told is not None
    assert told.startswith(SECRETS[text])
    for value in (value for _, value in private.secrets(text)):
        assert value in text
        assert value not in told
        assert len(told.removeprefix(SECRETS[text]).strip()) <= 7


@pytest.mark.parametrize(
    "text",
    [
        "AKIAIOSFODNN7EXAMPLE",
        'password = "your_password"',
        'password="password123"',
        "api_key = 'YOUR_API_KEY'",
        'token = "<TOKEN>"',
        'secret: "${SECRET}"',
        'password = input("Enter: ")',
        '"password": "hunter2"',
        'passwordField = "passwordInput"',
        'secret="correct horse battery"',
        'api_key = os.environ["OPENAI_API_KEY"]',
        "sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "sk-your-api-key-goes-here-please",
        "hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "postgres://user:password@localhost/db",
        "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.<payload>.<signature>",
        "task-management-application-for-everyone-here",
        "risk-adjusted-return-on-capital-measure",
        "scikit-learn, sk-learn and desk-organisation",
    ],
)
def test_no_secret(text: str) -> None:
    assert private.secret(row(text)) is None


PERSONAL = {
    "jane.miller@gmail.com": "e-mail address",
    "max@firma-huber.de": "e-mail address",
    "j.doe+x@uni.edu": "e-mail address",
    "tom@bigcorp.co.uk": "e-mail address",
    "(415) 867-5309": "phone number",
    "415-555-2671": "phone number",
    "+1 415 555 2671": "phone number",
    "1 (650) 253-0000": "phone number",
    "+49 30 901820": "phone number",
    "+49 170 1234567": "phone number",
    "+4917012345671": "phone number",
    "+44 20 7183 8750": "phone number",
    "+33 1 42 68 53 00": "phone number",
    "+86 139 1234 5679": "phone number",
    "4539 1488 0343 6467": "card number",
    "4111111111111111": "card number",
    "5500-0000-0000-0004": "card number",
    "378282246310005": "card number",
    "3782 822463 10005": "card number",
    "DE89 3704 0044 0532 0130 00": "IBAN",
    "GB82WEST12345698765432": "IBAN",
    "FR1420041010050500013M02606": "IBAN",
    "NL91ABNA0417164300": "IBAN",
}


@pytest.mark.parametrize("text", PERSONAL)
def test_a_personal_datum_is_found_and_not_shown(text: str) -> None:
    assert list(private.personal(f"Ask {text}, please.")) == [(PERSONAL[text], text)]
    told = private.personal_data(row(text))
    assert told is not None
    assert told.startswith(PERSONAL[text])
    assert text not in told


@pytest.mark.parametrize(
    "text",
    [
        *("jane@example.com", "jane@mail.example.org", "bob@corp.test", "user@localhost", "name@yourcompany.com"),
        *("noreply@github.com", "no-reply@shop-real.com", "git@github.com:org/repo.git", "x@self.weight"),
        *("logo@2x.png", "x@w.to(device)", "@decorator.name", "admin@your-domain.co.uk", "boss@company.com"),
        *("555-0123", "(555) 123-4567", "212-555-0187", "+1 212 555 0187", "1-800-275-2273", "123-456-7890"),
        *("+1 234 567 8900", "call 911", "100-200-3000", "2024-05-12", "10:30-12:45", "40.7128, -74.0060"),
        *("1.2.3.4", "192.168.100.200", "3.141.5926", "$1,234,567.89", "+1000000000", "+960397912423686"),
        *("472547338 + 960397912423686", "+25 - 30 - 40 - 50 - 60", "0123456789", "x = +4917012 + 345671"),
        *("978-3-16-148410-0", "9783161484100", "4111 1111 1111 1112", "1234567890123456", "0000 0000 0000 0000"),
        *("DE89370400440532013001", "GB00WEST12345698765432", "AB12 CDEF GHIJ KLMN", "2004 1010 0505 0001"),
    ],
)
def test_no_personal_datum(text: str) -> None:
    assert private.personal_data(row(text)) is None


def test_many_matches_make_a_short_message() -> None:
    many = ", ".join(f"{name}@firma-huber.de" for name in ("anna", "ben", "cleo", "dora", "emil"))
    assert private.personal_data(row(f"{many}, anna@firma-huber.de")) == (
        "e-mail address anna…de, e-mail address ben@…de, e-mail address cleo…de and 2 more"
    )


def test_what_a_tool_is_called_with_is_looked_at_too() -> None:
    call = {"function": {"name": "login", "arguments": {"password": "g7#Kq9!vR2zW"}}}
    messages = ({"role": "user", "content": "Go"}, {"role": "assistant", "content": "", "tool_calls": [call]})
    checked = Checked(file="f", line=1, index=0, example=Example(messages=messages), tokens=9)
    assert private.secret(checked) == "password g7#…W"


@given(st.text(string.digits, min_size=1, max_size=30))
def test_one_check_digit_is_right(digits: str) -> None:
    assert sum(private.luhn(digits + last) for last in string.digits) == 1


@given(st.text(string.digits, min_size=2, max_size=30), st.data())
def test_a_mistyped_digit_is_noticed(digits: str, data: st.DataObject) -> None:
    right = next(digits + last for last in string.digits if private.luhn(digits + last))
    place = data.draw(st.integers(0, len(right) - 1))
    other = data.draw(st.sampled_from([digit for digit in string.digits if digit != right[place]]))
    assert not private.luhn(right[:place] + other + right[place + 1 :])


@given(st.text(string.digits, min_size=11, max_size=26), st.sampled_from(["DE", "GB", "NO", "SC"]))
def test_two_check_digits_of_an_account_are_right(account: str, country: str) -> None:
    right = [f"{country}{check:02d}{account}" for check in range(2, 99)]
    assert sum(map(private.is_iban, right)) == 1


@given(st.text(ALPHANUMERIC + "#!%", min_size=8, max_size=60), st.text(max_size=40), st.text(max_size=40))
def test_no_message_shows_what_it_found(value: str, before: str, after: str) -> None:
    text = f'{before} password = "{value}" {after}'
    told = private.secret(row(text)) or ""
    assert all(secret_value not in told for _, secret_value in private.secrets(text))
    assert value not in told


@given(st.text("0123456789 +-().@ab", max_size=200))
def test_numbers_of_any_look_are_read(text: str) -> None:
    for kind, value in private.personal(text):
        assert value in text
        assert kind
