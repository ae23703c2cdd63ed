"""What others sent, read without trust and shown in messages."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharp_cog.text import plain, quoted, read_count, read_json


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
def test_a_short_value_is_written_as_it_is(value: object, expected: str) -> None:
    assert quoted(value) == expected


SCALARS = st.text() | st.binary() | st.integers() | st.floats()


@given(SCALARS | st.lists(st.text()) | st.dictionaries(st.text(), st.text()))
def test_a_quoted_value_is_short_and_can_be_printed_and_sent(value: object) -> None:
    text = quoted(value)
    assert text.isprintable()
    assert len(text) <= 160
    text.encode()


@pytest.mark.parametrize(
    "value",
    ["x" * 10**7, 10**100_000, nested(10_000), {"a" * 10**6: 1}, ["a" * 10**6] * 6, bytes(10**7)],
    ids=["text", "integer", "nested", "object", "list", "bytes"],
)
def test_a_value_of_any_size_is_quoted_in_no_time(value: object) -> None:
    start = time.process_time()
    assert len(quoted(value)) <= 160
    assert time.process_time() - start < 1


def test_plain_text_has_no_line_breaks_and_an_end() -> None:
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
def test_json_is_read(value: object) -> None:
    assert read_json(json.dumps(value)) == value
    assert read_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"9" * 5000, b'{"a": 1} more'])
def test_what_is_no_json_that_can_be_read_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_json(content)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("17", 17), ("007", 7), ("", None), ("-1", None), ("+1", None), ("1.5", None), ("\u00b2", None)],
)
def test_counts_of_headers(text: str, expected: int | None) -> None:
    assert read_count(text) == expected
    assert read_count("9" * 5000) is None
