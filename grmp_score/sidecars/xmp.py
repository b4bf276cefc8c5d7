"""XMP packets: properties by namespace and name, read and set.

A packet is XML that photographers' programs share, and each writes it in its own way: properties as attributes of
``rdf:Description`` or as elements in it, in one or in several descriptions, under any prefix.  It is parsed to find
out where in the bytes a value stands; setting one replaces or inserts those bytes and nothing else.

Source: Adobe, "XMP Specification Part 1: Data Model, Serialization, and Core Properties" (ISO 16684-1), section 7.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grmp_score.errors import DataError

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
XMP = "http://ns.adobe.com/xap/1.0/"
DIGIKAM = "http://www.digikam.org/ns/1.0/"
#: As Windows writes it, and as exiftool does.
MICROSOFT_PHOTO = ("http://ns.microsoft.com/photo/1.0/", "http://ns.microsoft.com/photo/1.0")
DARKTABLE = "http://darktable.sf.net/"
#: Of the properties that this package writes.
OWN = "urn:grmp_score:xmp:1.0/"

#: Packets above this many bytes are not read: those of long editing histories have some hundred kilobytes.
MAX_BYTES = 16_000_000

_DESCRIPTION = [f"{{{RDF}}}RDF", f"{{{RDF}}}Description"]
_QUOTED = rb"\"[^\"]*\"|'[^']*'"
_START_TAG = re.compile(rb"<[^\s/>]+(?:\s+[^\s=]+\s*=\s*(?:" + _QUOTED + rb"))*\s*/?>")
_ATTRIBUTE = re.compile(rb"([^\s=]+)\s*=\s*(" + _QUOTED + rb")")
_NAME = re.compile(rb"<[^\s/>]+")

#: A packet without properties.
EMPTY = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
    b' <rdf:RDF xmlns:rdf="' + RDF.encode() + b'">\n'
    b'  <rdf:Description rdf:about=""/>\n'
    b" </rdf:RDF>\n"
    b"</x:xmpmeta>\n"
    b'<?xpacket end="w"?>\n'
)


@dataclass(frozen=True)
class _Place:
    """Where a value stands: ``data[start:end]`` is it, or, with ``element``, an empty element of that name."""

    value: str
    start: int
    end: int
    element: bytes = b""


class Packet:
    """An XMP packet.

    Attributes:
        data: its bytes.
        namespaces: those that are declared anywhere in it.
    """

    def __init__(self, data: bytes, path: str | Path | None = None) -> None:
        """Parses it.

        Args:
            data: the packet, in UTF-8, UTF-16 or what its XML declaration says.
            path: where it comes from, for errors.

        Raises:
            DataError: it is empty, larger than `MAX_BYTES`, no well-formed XML, or holds a document type
                declaration, which XMP never does and attacks by entities need.
        """
        # Imported here, as the parser and what it needs take longer than the whole of ``--help``.
        from defusedxml.common import DefusedXmlException
        from defusedxml.ElementTree import DefusedXMLParser, ParseError

        self.data, self._path = data, path
        if not data.strip():
            raise DataError("the sidecar is empty, expected XMP", path=path)
        if len(data) > MAX_BYTES:
            raise DataError(f"more than {MAX_BYTES / 1e6:.0f} MB, expected an XMP packet", path=path)
        target = _Target(data)
        parser = DefusedXMLParser(target=target, forbid_dtd=True)
        target.expat = parser.parser
        try:
            # Cameras fill the space that they reserve.
            parser.feed(data if data.startswith((b"\xff\xfe", b"\xfe\xff")) else data.rstrip(b"\0"))
            parser.close()
        except DefusedXmlException as error:
            raise DataError("holds a document type declaration, which XMP never does", path=path) from error
        except (ParseError, ValueError, LookupError) as error:  # the latter: encodings
            raise DataError(f"no well-formed XMP: {error}", path=path) from error
        self.namespaces = frozenset(target.declared)
        self._places, self._insert_at, self._prefixes = target.places, target.insert_at, target.prefixes

    def get(self, namespace: str, name: str) -> str | None:
        """The value of a simple property, as text; None where there is none."""
        places = self._places.get((namespace, name))
        return places[0].value if places else None

    def set(self, namespace: str, prefix: str, name: str, value: str) -> Packet:
        """The packet with another value of a simple property; all bytes but the value's stay as they are.

        Args:
            namespace, name: of the property.
            prefix: for the namespace, where the packet has none for it.
            value: plain text without ``<``, ``&`` and quotes.

        Raises:
            DataError: the packet is UTF-16, or has no ``rdf:Description`` to hold properties.
        """
        if b"\0" in self.data.rstrip(b"\0"):
            raise DataError("is UTF-16, expected UTF-8", path=self._path, hint="Save it as UTF-8")
        data, text = self.data, value.encode()
        places = self._places.get((namespace, name), [])
        for place in reversed(places):
            new = b"<%b>%b</%b>" % (place.element, text, place.element) if place.element else text
            data = data[: place.start] + new + data[place.end :]
        if not places:
            if self._insert_at is None:
                raise DataError("has no rdf:Description, expected one to hold the rating", path=self._path)
            known = next((p for p, uri in self._prefixes.items() if uri == namespace and p), None)
            declaration = ""
            if known is None:
                known = next(p for p in (prefix, *(f"{prefix}{i}" for i in range(9))) if p not in self._prefixes)
                declaration = f' xmlns:{known}="{namespace}"'
            new = f'{declaration} {known}:{name}="{value}"'.encode()
            data = data[: self._insert_at] + new + data[self._insert_at :]
        return Packet(data, self._path)


class _Target:
    """Takes the parser's events and notes the properties of the descriptions, with their places."""

    def __init__(self, data: bytes) -> None:
        self.expat: Any = None
        self.places: dict[tuple[str, str], list[_Place]] = {}
        self.insert_at: int | None = None
        self.prefixes: dict[str, str] = {}
        self.declared = set[str]()
        self._data, self._scopes, self._path = data, dict[str, list[str]](), list[str]()
        self._text: list[str] = []
        self._element = 0

    def start_ns(self, prefix: str | None, uri: str) -> None:
        self._scopes.setdefault(prefix or "", []).append(uri)
        self.declared.add(uri)

    def end_ns(self, prefix: str | None) -> None:
        self._scopes[prefix or ""].pop()

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._path.append(tag)
        at = self.expat.CurrentByteIndex
        # Only what is said about the photo itself: descriptions of others can be nested in properties.
        if self._path[-2:] == _DESCRIPTION and len(self._path) <= 3:
            self._describe(at, attributes)
        elif self._in_property():
            self._text, self._element = [], at

    def data(self, text: str) -> None:
        self._text.append(text)

    def end(self, tag: str) -> None:
        if self._in_property():
            self._add(tag, self._place_of_element(self._element, self.expat.CurrentByteIndex))
        self._path.pop()

    def close(self) -> None:
        """The parser calls it at the end."""

    def _in_property(self) -> bool:
        return self._path[-3:-1] == _DESCRIPTION and len(self._path) <= 4

    def _describe(self, at: int, attributes: dict[str, str]) -> None:
        scope = {prefix: uris[-1] for prefix, uris in self._scopes.items() if uris}
        tag, name = _START_TAG.match(self._data, at), _NAME.match(self._data, at)
        if tag is None or name is None:  # UTF-16: the values are known, not their places
            for key, value in attributes.items():
                self._add(key, _Place(value, 0, 0))
            return
        if self.insert_at is None:
            self.insert_at, self.prefixes = name.end(), scope
        for attribute in _ATTRIBUTE.finditer(self._data, name.end(), tag.end()):
            prefix, _, local = attribute[1].decode("utf-8", "replace").rpartition(":")
            key = f"{{{scope.get(prefix)}}}{local}"
            if prefix and key in attributes:
                start, end = attribute.span(2)
                self._add(key, _Place(attributes[key], start + 1, end - 1))

    def _place_of_element(self, start: int, end: int) -> _Place:
        value, tag = "".join(self._text).strip(), _START_TAG.match(self._data, start)
        if tag is None:
            return _Place(value, 0, 0)
        if tag[0].endswith(b"/>"):
            return _Place(value, start, tag.end(), tag[0][1:].split()[0].rstrip(b"/>"))
        return _Place(value, tag.end(), end)

    def _add(self, key: str, place: _Place) -> None:
        namespace, _, name = key.removeprefix("{").rpartition("}")
        self.places.setdefault((namespace, name), []).append(place)
