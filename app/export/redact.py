"""Masks personal data in exported values: e-mail addresses, IP addresses, telephone and card numbers.

Addresses are found in any text, keys of objects included. Telephone and card numbers are found by the name of their member
(docs/contract.md, section 12), and telephone numbers also by their international form.
"""

import re
from typing import Any

_EMAILS = {"email", "user_email", "userEmail", "sender_email", "recipient_email"}
_PHONES = {"phone", "phone_number", "phoneNumber", "mobile"}
_IPS = {"ip", "ip_address", "ipAddress", "source_ip", "sourceIP", "client_ip", "clientIP", "remote_addr", "remoteAddr"}
_NUMBERS = {"ssn", "social_security_number", "credit_card", "creditCard", "cc_number"}
PERSONAL = frozenset(_EMAILS | _PHONES | _IPS | _NUMBERS)
"""Names of members whose values are personal."""

MASK = "***"
_ATOM = r"[\w.!#$%&'*+/=?^`{|}~-]"
# Each matches from the beginning of a run of its characters, with possessive quantifiers, so that no text makes it backtrack for long.
# A domain needs a dot: image@sha256 is not an address.
_EMAIL = re.compile(rf"(?<!{_ATOM})({_ATOM}){_ATOM}*+\"?@([\w-]++(?:\.[\w-]++)+)")
_IPV4 = re.compile(r"(?<!\d)(\d{1,3})(?:\.\d{1,3}){3}(?!\d)")
_HEX_GROUPS = re.compile(r"[0-9A-Fa-f:.]*+")
_PHONE = re.compile(r"\+(\d{1,3})[ ().-]{0,3}(?:\d[ ().-]{0,3}){6,13}\d(?!\d)")
_DIGITS = re.compile(r"\d")


def text(value: str) -> str:
    """`value` with e-mail and IP addresses, and telephone numbers in their international form, masked."""
    if "@" in value or "%40" in value:  # the at sign of an address in a URL
        value = _without_emails(value)
    if value.count(":") >= 2:
        value = _HEX_GROUPS.sub(_masked_ipv6, value)
    if value.count(".") >= 3:
        value = _IPV4.sub(rf"\1.{MASK}.{MASK}.{MASK}", value)
    return _PHONE.sub(_masked_phone, value) if "+" in value else value


def _without_emails(value: str) -> str:
    """Repeated until nothing changes: the text after one address may be the end of another."""
    decoded = value.replace("%40", "@")
    masked = _EMAIL.sub(_masked_email, decoded)
    return value if masked == decoded else _without_emails(masked)


def tree(value: Any, name: str = "") -> Any:
    """A JSON value masked throughout; `name` is the personal name of the nearest member around it, if there is one."""
    if isinstance(value, str):
        return _personal(text(value), name) if name else text(value)
    if isinstance(value, list):
        return [tree(item, name) for item in value]
    if isinstance(value, dict):
        return _members(value, name)
    if name in _NUMBERS | _PHONES and value is not None and not isinstance(value, bool):
        return _phone(str(value)) if name in _PHONES else MASK
    return value


def _members(value: dict[str, Any], name: str) -> dict[str, Any]:
    """Keys that are equal once they are masked get a number, so that no member is lost."""
    masked: dict[str, Any] = {}
    for key, member in value.items():
        masked_key, number = text(key), 1
        while masked_key in masked:
            number += 1
            masked_key = f"{text(key)}#{number}"
        masked[masked_key] = tree(member, key if key in PERSONAL else name)
    return masked


def _personal(value: str, name: str) -> str:
    """The text of a member with a personal name, its addresses masked already. Text without digits, such as `unknown`, is not masked."""
    if name in _NUMBERS and _DIGITS.search(value):
        return MASK
    return _phone(value) if name in _PHONES and len(_DIGITS.findall(value)) >= 6 else value


def _masked_email(match: re.Match[str]) -> str:
    return f"{match[1]}{MASK}@" + ".".join(label[0] + MASK for label in match[2].split("."))


def _masked_ipv6(match: re.Match[str]) -> str:
    """Times of day and MAC addresses have colons too, and are not masked; no part of them is an IPv6 address."""
    groups = match[0]
    if "::" in groups or groups.count(":") >= 7:
        return f"{groups.partition(':')[0]}:{MASK}"
    return groups


def _masked_phone(match: re.Match[str]) -> str:
    return f"+{match[1]}-{MASK}-****"


def _phone(value: str) -> str:
    return _PHONE.sub(_masked_phone, value) if _PHONE.search(value) else f"{MASK}-{MASK}-****"
