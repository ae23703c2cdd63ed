"""Text from other programs: parsed without trust, shown in messages, and redacted."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from sharp_cog.text import first_line, plain, quoted, read_count, read_json, read_number, reason_of, redact, trace


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("beach", "'beach'"),
        (3, "3"),
        (2.5, "2.5"),
        (None, "None"),
        (True, "True"),
        ([1, "a"], "[1, 'a']"),
        ({"a": 1}, "{'a': 1}"),
        ((2, 3, 4, 5), "(2, 3, 4, 5)"),
        (10**100, "an integer of 333 bits"),
        (b"abc", "b'abc'"),
        (bytes(1000), "1000 bytes"),
        ("a\nb\x00\ud800", "'a\\nb\\x00\\ud800'"),
    ],
)
def test_a_short_value_is_quoted_whole(value: object, expected: str) -> None:
    assert quoted(value) == expected


SCALARS = st.text() | st.binary() | st.integers() | st.floats()


@settings(max_examples=50)
@given(SCALARS | st.lists(st.text()) | st.dictionaries(st.text(), st.text()))
def test_a_quoted_value_is_short_and_printable(value: object) -> None:
    text = quoted(value)
    assert text.isprintable()
    assert len(text) <= 160
    text.encode()


@pytest.mark.parametrize(
    "value",
    ["x" * 10**7, 10**100_000, nested(10_000), {"a" * 10**6: 1}, ["a" * 10**6] * 6, bytes(10**7)],
    ids=["text", "integer", "nested", "object", "list", "bytes"],
)
def test_a_value_of_any_size_is_quoted_within_a_second(value: object) -> None:
    start = time.process_time()
    assert len(quoted(value)) <= 160
    assert time.process_time() - start < 1


def test_plain_text_is_one_line_of_limited_length() -> None:
    assert plain("no\r\nanswer\x1b[31m\ud800") == "no answer [31m"
    assert plain("x" * 80) == "x" * 80
    assert plain("x" * 1000) == "x" * 77 + "..."
    assert plain(ValueError("why not"), 6) == "why..."


def test_plain_text_has_no_secrets() -> None:
    assert plain("no answer from https://me:secret@example.com/a?signature=secret") == (
        "no answer from https://example.com/a?..."
    )


@settings(max_examples=30)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner)))
def test_json_is_parsed(value: object) -> None:
    assert read_json(json.dumps(value)) == value
    assert read_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"9" * 5000, b'{"a": 1} more'])
def test_broken_or_deeply_nested_json_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_json(content)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("17", 17), ("007", 7), ("", None), ("-1", None), ("+1", None), ("1.5", None), ("\u00b2", None)],
)
def test_a_count_in_a_header_has_digits_only(text: str, expected: int | None) -> None:
    assert read_count(text) == expected
    assert read_count("9" * 5000) is None


def test_the_reason_of_an_error_is_its_text_or_its_class() -> None:
    assert reason_of(ValueError("no\nanswer")) == "no answer"
    assert reason_of(ValueError()) == "ValueError"
    assert first_line(ValueError("no answer from https://me:secret@example.com\nat all")) == (
        "no answer from https://example.com"
    )
    assert first_line(ValueError()) == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://example.com/a.jpg", "https://example.com/a.jpg"),
        ("https://user:pass@example.com/a.jpg", "https://example.com/a.jpg"),
        ("https://p@ss:w@rd@example.com:8080/", "https://example.com:8080/"),
        ("https://example.com/a@b.jpg", "https://example.com/a@b.jpg"),
        ("get https://example.com/a?X-Amz-Signature=abc&b=1 or not", "get https://example.com/a?... or not"),
        ("exceeded with url: /a.jpg?sig=abc (Caused by", "exceeded with url: /a.jpg?... (Caused by"),
        ("at 'https://e.com/a?b=c'", "at 'https://e.com/a?...'"),
        ("ftp://token@example.com", "ftp://example.com"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ..."),
        ("{'Authorization': 'Client-ID abcdef123'}", "{'Authorization': 'Client-ID ...'}"),
        ("Authorization: Basic dXNlcjp4eXp6eQ==", "Authorization: Basic ..."),
        ("the basic settings", "the basic settings"),
        ("token hf_abcdefghijklmn is refused", "token hf_... is refused"),
        ("what is x = 3? y=4", "what is x = 3? y=4"),
        ("me@example.com wrote", "me@example.com wrote"),
        ("", ""),
    ],
)
def test_secrets_are_removed_and_the_rest_stays(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


def test_a_traceback_names_the_place_but_not_the_address() -> None:
    with pytest.raises(requests.ConnectionError) as caught:
        requests.get("http://user:xyzzy@127.0.0.1:9/a?sig=xyzzy", timeout=5)
    assert "xyzzy" in str(caught.value), "requests puts the whole path into its errors"
    shown = trace(caught.value)
    assert "xyzzy" not in shown
    assert "ConnectionError" in shown
    assert __file__ in shown


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), ("-2.50", -2.5), ("+.5", 0.5), ("4.", 4), ("1e3", 1000), (" 7\n", 7), ("1E-2", 0.01)],
)
def test_numbers_are_read_as_people_write_them(text: str, number: float) -> None:
    assert read_number(text) == number


@pytest.mark.parametrize(
    "text", ["", " ", "1_000", "\u0661\u0662", "\uff11", "1\u00a0", "0x10", "1,5", "1 000", "e5", ".", "--1", "1e"]
)
def test_other_spellings_of_numbers_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no number"):
        read_number(text)
