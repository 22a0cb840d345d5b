import gc
import json
import math
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import orjson
import pytest
import rfc8785

from app.errors import BadRequest
from app.events.canonical import canonical, canonical_exact, depth_of, kind_of, loads, parse, parse_items, sorted_json
from tests.payloads import payloads

NESTED = b"[" * 200 + b"]" * 200


@pytest.fixture(scope="module")
def ordinary() -> list[tuple[Any, str]]:
    return payloads(beyond=False)


@pytest.fixture(scope="module")
def beyond() -> list[tuple[Any, str]]:
    return payloads(beyond=True)


def _exact_value(text: str | bytes) -> Any:
    """Every number as a Decimal: an independent reading of what was written."""
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


def test_equals_rfc8785(ordinary: list[tuple[Any, str]]) -> None:
    """Ordinary events do not verify with anybody's RFC 8785."""
    for value, text in ordinary:
        expected = rfc8785.dumps(value)
        assert canonical(value) == canonical_exact(value) == expected
        document = parse(text.encode())
        assert canonical(document.value, plain=document.plain) == canonical_exact(document.value) == expected


def test_fast_path_equals_the_exact_one(beyond: list[tuple[Any, str]]) -> None:
    """The short cuts of reading or writing give other bytes than the long way."""
    for _, text in beyond:
        document = parse(text.encode())
        assert canonical(document.value, plain=document.plain) == canonical_exact(document.value)
        assert repr(loads(text)) == repr(document.value)


def test_nothing_is_altered(beyond: list[tuple[Any, str]]) -> None:
    """A number comes out with another value than it came in with."""
    for value, text in beyond:
        assert _exact_value(canonical(parse(text.encode()).value)) == _exact_value(text)
        assert canonical(loads(text)) == canonical(value)


def test_fixed_point(beyond: list[tuple[Any, str]]) -> None:
    """The canonical form of a canonical form is another one."""
    for _, text in beyond:
        once = canonical(parse(text.encode()).value)
        assert canonical(loads(once)) == once


def test_types_of_numbers(beyond: list[tuple[Any, str]]) -> None:
    """A number is read as another type than its value asks for."""
    pending: list[Any] = [parse(text.encode()).value for _, text in beyond]
    while pending:
        node = pending.pop()
        pending += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        assert not isinstance(node, float) or not node.is_integer()
        assert not isinstance(node, Decimal) or (
            node != node.to_integral_value() and Decimal(repr(float(node))) != node
        )


def test_parts_of_a_plain_document_are_plain(ordinary: list[tuple[Any, str]]) -> None:
    """`plain` does not hold for the payload alone, whose bytes are hashed."""
    documents = [parse(text.encode()) for _, text in ordinary]
    plain = [document.value for document in documents if document.plain]
    assert 100 < len(plain) < len(documents)
    while plain:
        node = plain.pop()
        assert orjson.dumps(node, option=orjson.OPT_SORT_KEYS) == canonical_exact(node)
        plain += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def test_items_equal_parse(beyond: list[tuple[Any, str]]) -> None:
    """An event of a large batch is stored otherwise than the same event sent alone."""
    body = ("[" + " ,\n".join(text for _, text in beyond) + "]").encode()
    alone = (parse(text.encode()) for _, text in beyond)
    for item, document in zip(parse_items(body), alone, strict=True):
        assert (repr(item.value), item.plain, item.depth) == (repr(document.value), document.plain, document.depth)


@pytest.mark.parametrize("body", [b"[]", b" [ ] ", b"[1]", b'[[],{"a":1} ]\n', b'["]",","]'])
def test_items_of_small_arrays(body: bytes) -> None:
    """Blanks, an empty array or brackets in strings confuse the reading of a batch."""
    assert [item.value for item in parse_items(body)] == orjson.loads(body)


@pytest.mark.parametrize(
    ("token", "form"),
    [
        ("0", "0"),
        ("-0", "0"),
        ("-0.0", "0"),
        ("0e-999999999999", "0"),
        ("0." + "0" * 5000, "0"),
        ("5.0", "5"),
        ("1E2", "100"),
        ("1.50", "1.5"),
        ("0.00001", "0.00001"),
        ("0.000001", "0.000001"),
        ("0.0000001", "1e-7"),
        ("1e15", "1000000000000000"),
        ("999999999999999999999", "999999999999999999999"),
        ("1e21", "1e+21"),
        ("1000000000000000000000", "1e+21"),
        ("1000000000000000000001", "1000000000000000000001"),
        ("1e23", "1e+23"),
        ("9007199254740993", "9007199254740993"),
        ("9007199254740993.0", "9007199254740993"),
        ("9223372036854775808", "9223372036854775808"),
        ("18446744073709551616", "18446744073709551616"),
        ("0.1", "0.1"),
        ("0.1000000000000000055", "0.1000000000000000055"),
        ("0.10000000000000000", "0.1"),
        ("1.7976931348623157e308", "1.7976931348623157e+308"),
        ("9e308", "9" + "0" * 308),
        ("1e-308", "1e-308"),
        ("100e-310", "1e-308"),
        ("0.0000000000000000001e310", "1e+291"),
        ("1" + "0" * 308, "1e+308"),
        ("1" * 100, "1" * 100),
        ("2.2250738585072011e-308", "0." + "0" * 307 + "22250738585072011"),
    ],
)
def test_form_of_a_number(token: str, form: str) -> None:
    """A number has another canonical form than docs/design.md requires: earlier hashes no longer verify."""
    document = parse(token.encode())
    assert canonical(document.value, plain=document.plain).decode() == form
    (item,) = parse_items(f"[{token}]".encode())
    assert canonical(item.value, plain=item.plain).decode() == canonical(loads(token)).decode() == form


@pytest.mark.parametrize(
    "token", ["1" * 101, "9.9e309", "1e309", "1e-309", "1e999999999999999999", "-1e-99999", "5e-324"]
)
def test_number_beyond_the_limits(token: str) -> None:
    """A number that would be stored at any length is accepted, or the refusal does not name its place."""
    for read in (parse, _last_item):
        with pytest.raises(BadRequest) as refused:
            read(b'[{"a/b":[0,%s]}]' % token.encode())
        assert refused.value.detail.startswith("/0/a~1b/1: expected a number of at most 100 significant digits")
        assert token[:40] in refused.value.detail
        assert list(refused.value.extra["field_errors"]) == ["/0/a~1b/1"]  # type: ignore[call-overload]


def _last_item(body: bytes) -> Any:
    return list(parse_items(body))[-1]


REFUSED: list[tuple[bytes, str]] = [
    (b"", "got nothing"),
    (b" \n", "line 2 column 1"),
    (b"\xef\xbb\xbf[]", "byte order mark"),
    (b'["\xff"]', "invalid bytes at byte 2"),
    (b'["\xed\xa0\x80"]', "invalid bytes at byte 2"),
    (b"[1] x", "line 1 column 5: Extra data"),
    (b"[1]\x00", "line 1 column 4"),
    (b"[1]]", "line 1 column 4"),
    (b"[1,\n 2,]", "line 2 column 4"),
    (b"[1 2]", "line 1 column 4"),
    (b"[1", "line 1 column 3"),
    (b"[,1]", "line 1 column 2"),
    (b"[01]", "line 1 column 3"),
    (b"[1.]", "line 1 column 3"),
    (b"[+1]", "line 1 column 2"),
    (b"[.5]", "line 1 column 2"),
    (b"[1e]", "line 1 column 3"),
    (b"['a']", "line 1 column 2"),
    (b'["a\nb"]', "line 1 column 4"),
    (b'["\\x"]', "line 1 column 3"),
    (b'["\\u12"]', "line 1 column"),
    (b'["abc', "Unterminated string"),
    (b'[{"a":1,}]', "line 1 column"),
    (b"[{1:2}]", "line 1 column 3"),
    (b"[undefined]", "line 1 column 2"),
    (b'["NaN",NaN]', "line 1 column 8: NaN is not a JSON number"),
    (b"[Infinity]", "line 1 column 2: Infinity"),
    (b"[-Infinityx]", "line 1 column 2: -Infinity"),
    (b'["\\ud800"]', "/0: expected text without lone surrogates"),
    (b'[{"a":"\\uDC00\\uD800"}]', "/0/a: expected text without lone surrogates"),
    (b'[{"\\ud800":1}]', "/0: expected keys without lone surrogates"),
    (b'["a\\u0000b"]', "/0: expected text without NUL"),
    (b'[1,{"~":{"/":["\\u0000"]}}]', "/1/~0/~1/0: expected text without NUL"),
    (b'[{"x":{"\\u0000":1}}]', "/0/x: expected keys without NUL"),
    (b"[" + NESTED + b"]", "expected a nesting of at most 200 levels"),
    (b"[" * 100_000, "nesting"),
    (b'[{"a":' * 100_000, "nesting"),
]


@pytest.mark.parametrize(("body", "words"), REFUSED, ids=lambda case: repr(case)[:30])
def test_refused(body: bytes, words: str) -> None:
    """Text that is not JSON, or cannot be stored, is accepted, or refused without naming the fault and its place."""
    with pytest.raises(BadRequest) as refused:
        parse(body)
    assert words in refused.value.detail
    orjson.dumps(refused.value.extra)
    assert refused.value.type.endswith("/validation-error")


@pytest.mark.parametrize(
    ("body", "words"), [c for c in REFUSED if c[0] != b"[" + NESTED + b"]"], ids=lambda case: repr(case)[:30]
)
def test_refused_as_items(body: bytes, words: str) -> None:
    """A large batch is refused with another answer than a small one."""
    with pytest.raises(BadRequest) as refused:
        list(parse_items(body))
    assert words in refused.value.detail


@pytest.mark.parametrize(
    ("body", "kind"), [(b"{}", "an object"), (b'"a"', "a string"), (b"1", "a number"), (b"null", "null")]
)
def test_items_of_no_array(body: bytes, kind: str) -> None:
    """The answer to a batch that is not an array does not name that fault."""
    with pytest.raises(BadRequest, match=f"expected a JSON array, got {kind}"):
        next(parse_items(body))


@pytest.mark.parametrize(
    "body",
    [
        b"1" * 1_000_000,
        b"[" + b"1" * 1_000_000 + b"]",
        b"1e" + b"9" * 1_000_000,
        b"1e-" + b"0" * 1_000_000,
        b"0." + b"0" * 1_000_000 + b"1",
        b"[" + b"1e999," * 100_000 + b"1]",
        b"[" + b"0.1234567890123456789," * 50_000 + b"1]",
        b"[" + b"0.0," * 300_000 + b"1e-290]",
        b"[" + b"e-" * 500_000,
        b'"' + b"\\" * 1_000_001,
        b'["' + b"e-000" * 200_000 + b'",0.0,NaN]',
        b'["' + b"\\ud800" * 100_000 + b'"]',
        b"\n" * 1_000_000 + b"x",
        b"{" + b'"a":{"\\u0000":1},' * 50_000 + b'"b":1}',
        b'{"%s":' % (b"k" * 5_000) * 199 + b'"\\u0000"' + b"}" * 199,
        b"[" * 1_000_000 + b"]" * 1_000_000,
    ],
    ids=lambda body: repr(body[:20]),
)
@pytest.mark.parametrize("read", [parse, lambda body: list(parse_items(b"[" + body + b"]"))], ids=["parse", "items"])
def test_adversarial_bodies_cost_little(read: Callable[[bytes], Any], body: bytes) -> None:
    """One megabyte holds the service up, or makes it fail otherwise than with a 400."""
    detail = ""

    def refuse() -> None:
        nonlocal detail
        try:
            read(body)
        except BadRequest as refused:
            detail = refused.detail

    ratios = list[float]()
    gc.freeze()  # as the service does: the objects of other tests are not what it costs
    try:
        while len(ratios) < 5 and min(ratios, default=math.inf) >= 200:
            ratios.append(_cpu_seconds(refuse) / _cpu_seconds(lambda: json.loads(_ONE_MEGABYTE)))
    finally:
        gc.unfreeze()
    # It is 60 at most. What grows with the square of the length, as int() of a million digits, is above 500.
    assert min(ratios) < 200
    assert len(detail) < 30_000


def _cpu_seconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


_ONE_MEGABYTE = b"[" + b"0.123456789," * 80_000 + b"1]"


_INTRUDERS = b'\x00"\\{}[],:0-.eE\x80\xffnN \n'


def test_agrees_with_orjson_on_broken_bodies(ordinary: list[tuple[Any, str]]) -> None:
    """One of the two readers accepts what the other calls broken."""
    for number, (_, text) in enumerate(ordinary[:2000]):
        body = bytearray(text.encode())
        body[number * 7919 % len(body)] = _INTRUDERS[number % len(_INTRUDERS)]
        try:
            orjson.loads(body)
            broken = None
        except orjson.JSONDecodeError as error:
            broken = error
        if broken is None or "infinity" in broken.msg:
            continue
        with pytest.raises(BadRequest):
            parse(bytes(body))
        with pytest.raises(BadRequest):
            list(parse_items(b"[%s]" % body))


def test_depth() -> None:
    """The nesting of a payload is counted wrongly: its limit moves."""
    assert [parse(body).depth for body in (b"1", b"{}", b"[[]]", b'{"a":[{}],"b":1}', NESTED)] == [0, 1, 2, 3, 200]
    assert [depth_of(value) for value in (1, {}, {"a": [1.5]})] == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "kind"),
    [("{}", "an object"), ("[]", "an array"), ("true", "a boolean"), ("1.5", "a number"), ("null", "null")],
)
def test_kind_of(text: str, kind: str) -> None:
    """A refusal calls what came by another name."""
    assert kind_of(loads(text)) == kind


def test_canonical_refuses_what_is_no_json() -> None:
    """A value without a canonical form gets one."""
    for value in (b"raw", (1,), {1: 2}, [object()]):
        with pytest.raises(TypeError):
            canonical(value)
    for number in (float("nan"), float("inf"), Decimal("NaN")):
        with pytest.raises(ValueError, match="not a JSON number"):
            canonical([number])


def test_stored_rows_have_no_limits() -> None:
    """A row that somebody wrote by SQL cannot be verified or read: too long or too deep."""
    long, deep = "9" * 100_000 + "." + "1" * 10_000, '{"a":[' * 5_000 + "1.50" + "]}" * 5_000
    for text in (long, "1" + "0" * 20_000, deep):
        value = loads(text)
        assert canonical(value).decode() == text.replace("1.50", "1.5")
        assert sorted_json(text).decode() == text.replace("1.50", "1.5")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"b": 1, "a": {"d": null, "c": [true, 0.5]}}', '{"a":{"c":[true,0.5],"d":null},"b":1}'),
        ('{"😀": 1, "\ufb33": 2}', '{"\ufb33":2,"😀":1}'),
        ('{"😀": 18446744073709551616, "\ufb33": 2}', '{"\ufb33":2,"😀":18446744073709551616}'),
        ("[0.1000000000000000055, 9007199254740993, 1.5]", "[0.1000000000000000055,9007199254740993,1.5]"),
        ("1" + "0" * 400 + "1", "1" + "0" * 400 + "1"),
    ],
)
def test_readable(text: str, answer: str) -> None:
    """A query answers with keys in another order than the contract's, or with other numbers than the row's."""
    assert sorted_json(text) == sorted_json(text.encode()) == answer.encode()


def test_readable_alters_no_number(beyond: list[tuple[Any, str]]) -> None:
    """A query answers another number than the one that is stored."""
    for _, text in beyond:
        stored = canonical(loads(text))
        assert _exact_value(sorted_json(stored)) == _exact_value(text)
