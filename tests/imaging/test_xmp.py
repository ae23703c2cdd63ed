"""XMP packets: found in any file, and read whatever their form."""

from __future__ import annotations

import time

import pytest

from sharp_cog.imaging.xmp import merge_extension, read, scan

NAMESPACE = "http://example.com/a/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"


def packet(body: str) -> bytes:
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}">{body}</rdf:RDF></x:xmpmeta>'.encode()


@pytest.mark.parametrize(
    "body",
    [
        f'<rdf:Description xmlns:a="{NAMESPACE}" a:Near="0.5"/>',
        f'<rdf:Description xmlns:other="{NAMESPACE}"><other:Near> 0.5 </other:Near></rdf:Description>',
        f'<rdf:Description xmlns:a="{NAMESPACE}"><a:B rdf:parseType="Resource"><a:Near>0.5</a:Near></a:B>'
        "</rdf:Description>",
    ],
    ids=["attribute", "element of another prefix", "nested"],
)
def test_a_property_may_be_an_attribute_or_an_element(body: str) -> None:
    found = read(packet(body))
    assert found is not None
    assert found.number(NAMESPACE, "Near") == 0.5
    assert found.number(NAMESPACE, "Far") is None
    assert found.get(NAMESPACE, "Far", "none") == "none"


def test_a_list_is_one_text() -> None:
    items = "".join(f"<rdf:li>{number}</rdf:li>" for number in (1, 2, 3))
    found = read(
        packet(f'<rdf:Description xmlns:a="{NAMESPACE}"><a:L><rdf:Seq>{items}</rdf:Seq></a:L></rdf:Description>')
    )
    assert found is not None
    assert found.get(NAMESPACE, "L") == "1 2 3"


def test_packets_are_found_in_any_file_and_broken_ones_left_out() -> None:
    good = packet(f'<rdf:Description xmlns:a="{NAMESPACE}" a:Near="1"/>')
    broken = good.replace(b"/></rdf:RDF>", b"></rdf:RDF>")
    content = bytes(100) + broken + b"\xff\xd8" + good + bytes(50) + good.replace(b'"1"', b'"2"') + good[:60]
    assert [found.number(NAMESPACE, "Near") for found in scan(content)] == [1, 2]
    assert scan(b"") == []


def test_entities_are_refused() -> None:
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaa">]><x:xmpmeta xmlns:x="adobe:ns:meta/">&a;</x:xmpmeta>'
    assert read(bomb) is None


def test_a_file_of_beginnings_takes_no_quadratic_time() -> None:
    start = time.process_time()
    assert scan(b"<x:xmpmeta" * 2_000_000) == []
    assert time.process_time() - start < 5


def test_an_extended_packet_is_put_together_from_its_parts() -> None:
    guid, content = "A" * 32, b"0123456789"
    head = b"http://ns.adobe.com/xmp/extension/\0" + guid.encode() + (10).to_bytes(4, "big")
    parts = [head + start.to_bytes(4, "big") + content[start : start + 4] for start in (8, 0, 4)]
    assert merge_extension(parts, guid) == content
    assert merge_extension(parts[:2], guid) == b"", "a part is missing"
    assert merge_extension(parts, "B" * 32) == b""
