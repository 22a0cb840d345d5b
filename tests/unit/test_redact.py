"""Redaction of exported values."""

import re
from ipaddress import IPv6Address, ip_address
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.export import redact

SHAPES = {
    "ada.lovelace@example.com": "a***@e***.c***",
    "10.1.2.3": "10.***.***.***",
    "+49 30 1234567": "+49-***-****",
    "+1 (555) 123-4567": "+1-***-****",
    "fe80::1": "fe80:***",
    "2001:db8:0:0:0:0:0:1": "2001:***",
    "from 10.1.2.3:8080 by <b@c.de>, at 12:30:45.": "from 10.***.***.***:8080 by <b***@c***.d***>, at 12:30:45.",
    "a@b.co@c.de": "a***@b***@c***.d***",
    "https://x/?u=ada%40example.com": "https:/***@e***.c***",
    "1@-.0": "1***@-***.0***",
    '{"to":"ada@x.io","cc":"bob@y.io"}': '{"to":"a***@x***.i***","cc":"b***@y***.i***"}',
    "::ffff:10.0.0.1": ":***",
}
KEPT = [
    *("", "2026-01-31T12:30:45.123456+01:00", "00:1a:2b:3c:4d:5e", "nginx@sha256:0123abcd", "1.25.3", "v1.2.3-rc.4"),
    *("sha256:" + "ab" * 32, "payments/Deployment/api", "5f3a-9c1b", "root@localhost", "12:30", "@here", "a@b"),
]
EMAIL = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")
IPV4 = re.compile(r"(?<!\d)(?:\d{1,3}\.){3}\d{1,3}(?!\d)")
IPV6 = re.compile(r"[0-9A-Fa-f:]+")

names = st.text("abcXYZ019._+-", min_size=1, max_size=8).filter(lambda text: text.strip(".+-") != "")
emails = st.builds(
    lambda a, b, c: f"{a}@{b}.{c}",
    names,
    st.from_regex("[a-z0-9]{1,5}", fullmatch=True),
    st.sampled_from(["io", "com"]),
)
addresses = st.ip_addresses().map(str) | st.ip_addresses(v=6).map(lambda a: a.exploded)
around = st.text("aä1 .,:;<>()[]{}\"'@+-/\\_\n\t", max_size=6)
texts = st.builds(lambda a, found, b: a + found + b, around, emails | addresses, around)
values = st.recursive(
    texts | st.none() | st.booleans() | st.integers() | st.lists(texts, max_size=3).map("".join),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(texts | st.sampled_from(sorted(redact.PERSONAL)), inner, max_size=4)
    ),
    max_leaves=12,
)


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(text for member in value.values() for text in strings(member))]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


def addresses_in(text: str) -> list[str]:
    """By another way of looking than redaction's own."""
    found = EMAIL.findall(text) + IPV4.findall(text)
    for run in IPV6.findall(text):
        for start in range(len(run)):
            for end in range(start + 2, min(len(run), start + 39) + 1):
                if run[start:end].count(":") >= 2 and is_ipv6(run[start:end]):
                    found.append(run[start:end])
    return found


def is_ipv6(text: str) -> bool:
    try:
        return isinstance(ip_address(text), IPv6Address)
    except ValueError:
        return False


@pytest.mark.parametrize("text", SHAPES)
def test_shapes(text: str) -> None:
    """An address is not masked as the contract has it, or takes what stands beside it along."""
    assert redact.text(text) == SHAPES[text]


@pytest.mark.parametrize("text", KEPT)
def test_kept(text: str) -> None:
    """A text without anything personal is changed."""
    assert redact.text(text) == text


@settings(max_examples=1500)
@given(value=values)
def test_no_address_is_left_anywhere(value: Any) -> None:
    """An e-mail or IP address stays in a redacted value: in a text, a key, an array, or beside other letters."""
    redacted = redact.tree(value)
    assert [found for text in strings(redacted) for found in addresses_in(text)] == []
    assert redact.tree(redacted) == redacted


@settings(max_examples=300)
@given(value=values)
def test_nothing_is_lost(value: Any) -> None:
    """Redaction drops an item or a member: two keys that are masked alike become one."""

    def shape(node: Any) -> Any:
        if isinstance(node, dict):
            return [shape(member) for member in node.values()]
        return [shape(item) for item in node] if isinstance(node, list) else None

    assert shape(redact.tree(value)) == shape(value)


def test_by_name() -> None:
    """What only its name gives away stays: numbers, also as JSON numbers, in arrays and objects."""
    value = {
        "phone": ["555 123 4567", {"work": 5551234567}],
        "ssn": "123-45-6789",
        "creditCard": 4111111111111111,
        "mobile": "unknown",
        "email": "none",
        "other": "555 123 4567",
    }
    assert redact.tree(value) == {
        "phone": ["***-***-****", {"work": "***-***-****"}],
        "ssn": "***",
        "creditCard": "***",
        "mobile": "unknown",
        "email": "none",
        "other": "555 123 4567",
    }


@pytest.mark.parametrize("text", ["a", "a@", "a@b.c@d.e", "+1 ", "1.", "a.", "1:", "@a.", "::", '"@', "%40a."])
def test_long_texts_take_no_long_time(text: str) -> None:
    """A posted text of 256 KiB holds the service up: were the work quadratic, this test would not end."""
    redact.text(text * (256 * 1024 // len(text)))


def test_json_stays_json() -> None:
    """A redacted value can no longer be written."""
    assert orjson.loads(orjson.dumps(redact.tree({"a@b.cd": 1, "a@b.ce": [None, "\u2028", 1.5]})))
