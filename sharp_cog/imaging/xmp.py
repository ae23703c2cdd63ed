"""XMP packets, Adobe's metadata in files of all kinds: finding and reading them.

Structure: ISO 16684-1 (XMP, part 1), and part 3 of Adobe's specification for JPEG and for scanning other files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.etree import ElementTree

_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_BEGIN, _END = b"<x:xmpmeta", b"</x:xmpmeta>"
_MAX_PACKETS = 100
_MAX_DEPTH = 40
_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
_GUID_CHARS, _NUMBERS_BYTES = 32, 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Packet:
    """The properties of one packet.

    Attributes:
        values: Simple properties by (namespace, name), wherever they are nested; the first of each counts.
        structures: Structures in the order of the packet, each as its own simple properties.
    """

    values: dict[tuple[str, str], str] = field(default_factory=dict)
    structures: list[dict[tuple[str, str], str]] = field(default_factory=list)

    def get(self, namespace: str, name: str, default: str = "") -> str:
        """Return a simple property, or the items of a list, separated by spaces."""
        return self.values.get((namespace, name), default).strip()

    def number(self, namespace: str, name: str) -> float | None:
        """Return a property that is a number; None for another one, or if it is absent."""
        try:
            return float(self.get(namespace, name))
        except ValueError:
            return None


def scan(content: bytes) -> list[Packet]:
    """Return the packets of a file that stores them as they are, such as HEIC, in their order.

    A packet that is not valid XML is left out.
    """
    found, position = list[Packet](), 0
    for _ in range(_MAX_PACKETS):
        start = content.find(_BEGIN, position)
        end = content.find(_END, start)
        if start < 0 or end < 0:
            break
        position = end + len(_END)
        packet = read(content[start:position])
        if packet is not None:
            found.append(packet)
    return found


def read(xml: bytes) -> Packet | None:
    """Read a packet; None if it is not valid XML, or defines entities, which XMP has no use for."""
    if b"<!" in xml:
        return None
    try:
        root = ElementTree.fromstring(xml.strip(b"\0 \r\n\t"))  # noqa: S314 - entities are refused above
    except (ElementTree.ParseError, ValueError, LookupError):
        return None
    packet = Packet()
    _collect(root, packet, 0)
    return packet


def merge_extension(segments: list[bytes], guid: str) -> bytes:
    """Return the extended packet of a JPEG, whose parts lie in several segments of type APP1; empty if it has none.

    Args:
        segments: Contents of all segments of this type.
        guid: Digest by which the standard packet names the extended one.
    """
    parts: dict[int, bytes] = {}
    start = len(_EXTENSION) + _GUID_CHARS
    for segment in segments:
        if segment.startswith(_EXTENSION) and segment[len(_EXTENSION) : start].decode("latin-1") == guid:
            offset = int.from_bytes(segment[start + 4 : start + _NUMBERS_BYTES], "big")
            parts[offset] = segment[start + _NUMBERS_BYTES :]
    merged = b""
    for offset in sorted(parts):
        if offset != len(merged):
            return b""
        merged += parts[offset]
    return merged


def _collect(element: ElementTree.Element, packet: Packet, depth: int) -> None:
    """Collect the properties below an element, as attributes and as elements."""
    if depth > _MAX_DEPTH:
        return
    own: dict[tuple[str, str], str] = {}
    for name, value in element.attrib.items():
        if not name.startswith(_RDF):
            own[_split(name)] = value
    for child in element:
        items = [item.text or "" for item in child.iter(f"{_RDF}li") if not len(item)]
        if not len(child):
            if child.text:
                own[_split(child.tag)] = child.text
        elif items:
            own[_split(child.tag)] = " ".join(items)
        _collect(child, packet, depth + 1)
    if own:
        packet.structures.append(own)
        for key, value in own.items():
            packet.values.setdefault(key, value)


def _split(tag: str) -> tuple[str, str]:
    namespace, _, name = tag.rpartition("}")
    return namespace.removeprefix("{"), name
