"""What is taken out of text, and what stays."""

from __future__ import annotations

import pytest
import requests

from sharp_cog.text import redact, trace


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
def test_secrets_go_and_the_rest_stays(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


def test_a_traceback_tells_where_but_not_the_address() -> None:
    with pytest.raises(requests.ConnectionError) as caught:
        requests.get("http://user:xyzzy@127.0.0.1:9/a?sig=xyzzy", timeout=5)
    assert "xyzzy" in str(caught.value), "requests tells the whole path"
    told = trace(caught.value)
    assert "xyzzy" not in told
    assert "ConnectionError" in told
    assert __file__ in told
