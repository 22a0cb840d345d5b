"""Credentials in URLs, masked wherever a text is shown: in settings, logs and error messages."""

import re
from collections.abc import Mapping
from typing import Any

_MASK = "***"
_PORT = r"\d{1,5}[/?#]"
_URL = re.compile(rf"(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]*://)((?:[^\s/?#@]*:(?!{_PORT}).*@)?\S*)")
_LOGIN = re.compile(r"(?<!\S)[^\s:/@]+:[^\s/@]*@(?=[^\s@])")
_PARAMETER = re.compile(r"([?&;#])([^=&;#\s]*=)?[^&;#\s]*")


def masked(text: str) -> str:
    """`text` with *** for whatever may be a credential in a URL in it: user and password, values of the query, the fragment.

    All before the last @ counts as user and password: a password that was not percent-encoded may have any character, white space too.
    So after `user:` it reaches to the last @ of the line, unless what follows the colon is a port and a path.
    """
    if "://" in text:
        return _URL.sub(_masked_url, text)
    return _LOGIN.sub(f"{_MASK}@", text) if "@" in text else text


def masked_values(value: Any) -> Any:
    """`value` with each text in it masked, at any depth of lists and mappings."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {name: masked_values(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(masked_values, value))
    return value


def _masked_url(match: re.Match[str]) -> str:
    scheme, rest = match.groups()
    _, at, rest = rest.rpartition("@")
    return f"{scheme}{_MASK if at else ''}{at}{_PARAMETER.sub(_masked_parameter, rest)}"


def _masked_parameter(match: re.Match[str]) -> str:
    return f"{match[1]}{match[2] or ''}{_MASK}" if len(match[0]) > 1 else match[0]
