"""XMP packets in the forms that photographers' programs write, by hand, and what each says."""

from __future__ import annotations

BEGIN = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
RDF = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
XMP = 'xmlns:xmp="http://ns.adobe.com/xap/1.0/"'


def packet(inner: str, toolkit: str, *, begin: str = BEGIN, end: str = '<?xpacket end="w"?>') -> bytes:
    """The envelope that all share."""
    return (
        f'{begin}<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="{toolkit}">\n <rdf:RDF {RDF}>\n{inner}\n </rdf:RDF>\n'
        f"</x:xmpmeta>\n{end}"
    ).encode()


ADOBE, EXIV2 = "Adobe XMP Core 7.0-c000 1.000000, 0000/00/00-00:00:00", "XMP Core 4.4.0-Exiv2"
DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
DARKTABLE = f'{XMP} xmlns:darktable="http://darktable.sf.net/"'

#: Name -> packet and stars.
FORMS: dict[str, tuple[bytes, float]] = {
    "lightroom, attribute": (
        packet(
            f'  <rdf:Description rdf:about=""\n    {XMP}\n    xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"\n'
            '   xmp:CreatorTool="Adobe Photoshop Lightroom Classic"\n   xmp:Rating="3"\n   xmp:Label="Red"\n'
            '   crs:Exposure2012="+0.35">\n   <crs:ToneCurvePV2012><rdf:Seq><rdf:li>0, 0</rdf:li></rdf:Seq>'
            "</crs:ToneCurvePV2012>\n  </rdf:Description>",
            ADOBE,
        ),
        3,
    ),
    "bridge, rejected": (
        packet(f'  <rdf:Description rdf:about="" {XMP} xmp:Rating="-1"/>', ADOBE),
        -1,
    ),
    "photoshop of 2005, prefix xap and an element": (
        packet(
            '  <rdf:Description rdf:about="uuid:1" xmlns:xap="http://ns.adobe.com/xap/1.0/">\n'
            "   <xap:Rating>4</xap:Rating>\n  </rdf:Description>\n"
            '  <rdf:Description rdf:about="uuid:1" xmlns:dc="http://purl.org/dc/elements/1.1/">\n'
            "   <dc:format>image/jpeg</dc:format>\n  </rdf:Description>",
            "3.1.1-111",
            begin='<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<?adobe-xap-filters esc="CR"?>\n',
        ),
        4,
    ),
    "lightroom, other photos' ratings inside": (
        packet(
            f'  <rdf:Description rdf:about="" {XMP} xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/">\n'
            '   <xmpMM:Pantry><rdf:Bag><rdf:li><rdf:Description xmp:Rating="1"/></rdf:li></rdf:Bag>\n'
            "   </xmpMM:Pantry>\n"
            "   <xmp:Rating>5</xmp:Rating>\n  </rdf:Description>",
            ADOBE,
        ),
        5,
    ),
    "darktable 4": (
        packet(
            f'  <rdf:Description rdf:about=""\n    {DARKTABLE}\n   xmp:Rating="2"\n   darktable:xmp_version="5">\n'
            '   <darktable:history>\n    <rdf:Seq>\n     <rdf:li\n      darktable:operation="exposure"\n'
            '      darktable:params="00>0"/>\n    </rdf:Seq>\n   </darktable:history>\n  </rdf:Description>',
            EXIV2,
            begin=DECLARATION,
            end="",
        ),
        2,
    ),
    "darktable 1, rejected": (
        packet(
            f'  <rdf:Description rdf:about="" {DARKTABLE} xmp:Rating="6" darktable:xmp_version="1"/>',
            EXIV2,
            begin=DECLARATION,
            end="",
        ),
        -1,
    ),
    "darktable 4, rejected": (
        packet(
            f'  <rdf:Description rdf:about="" {DARKTABLE} xmp:Rating="-1" darktable:xmp_version="5"/>',
            EXIV2,
            begin=DECLARATION,
            end="",
        ),
        -1,
    ),
    "digikam": (
        packet(
            f'  <rdf:Description rdf:about=""\n    {XMP}\n    xmlns:digiKam="http://www.digikam.org/ns/1.0/"\n'
            '    xmlns:MicrosoftPhoto="http://ns.microsoft.com/photo/1.0/"\n   xmp:Rating="4"\n'
            '   digiKam:PickLabel="3"\n   digiKam:ColorLabel="0"\n   MicrosoftPhoto:Rating="75"/>',
            EXIV2,
            begin=DECLARATION,
            end="",
        ),
        4,
    ),
    "digikam, rejected with stars": (
        packet(
            f'  <rdf:Description rdf:about="" {XMP} xmlns:digiKam="http://www.digikam.org/ns/1.0/"\n'
            '   xmp:Rating="3"\n   digiKam:PickLabel="1"/>',
            EXIV2,
            begin=DECLARATION,
            end="",
        ),
        -1,
    ),
    "windows explorer": (
        (
            "<?xpacket begin='\ufeff' id='W5M0MpCehiHzreSzNTczkc9d'?>\r\n"
            f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {RDF}>'
            '<rdf:Description rdf:about="uuid:faf5bdd5-ba3d-11da-ad31-d33d75182f1b" '
            'xmlns:MicrosoftPhoto="http://ns.microsoft.com/photo/1.0/">'
            "<MicrosoftPhoto:Rating>99</MicrosoftPhoto:Rating></rdf:Description>"
            f'<rdf:Description rdf:about="uuid:faf5bdd5-ba3d-11da-ad31-d33d75182f1b" {XMP}>'
            "<xmp:Rating>5</xmp:Rating></rdf:Description></rdf:RDF></x:xmpmeta>\r\n"
            + " " * 200
            + "<?xpacket end='w'?>"
        ).encode(),
        5,
    ),
    "windows photo gallery, percent alone": (
        packet(
            '  <rdf:Description rdf:about="" xmlns:MicrosoftPhoto="http://ns.microsoft.com/photo/1.0/" '
            'MicrosoftPhoto:Rating="25"/>',
            "",
        ),
        2,
    ),
    "exiftool": (
        (
            "<?xpacket begin='\ufeff' id='W5M0MpCehiHzreSzNTczkc9d'?>\n"
            "<x:xmpmeta xmlns:x='adobe:ns:meta/' x:xmptk='Image::ExifTool 12.57'>\n"
            "<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>\n\n <rdf:Description rdf:about=''\n"
            "  xmlns:xmp='http://ns.adobe.com/xap/1.0/'>\n  <xmp:Rating>1</xmp:Rating>\n </rdf:Description>\n"
            "</rdf:RDF>\n</x:xmpmeta>\n<?xpacket end='w'?>"
        ).encode(),
        1,
    ),
    "exiftool, percent": (
        (
            b"<x:xmpmeta xmlns:x='adobe:ns:meta/' x:xmptk='Image::ExifTool 11.88'>\n"
            b"<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>\n <rdf:Description rdf:about=''\n"
            b"  xmlns:MicrosoftPhoto='http://ns.microsoft.com/photo/1.0'>\n"
            b"  <MicrosoftPhoto:Rating>50</MicrosoftPhoto:Rating>\n </rdf:Description>\n</rdf:RDF>\n</x:xmpmeta>"
        ),
        3,
    ),
    "canon camera, in every file": (
        packet(
            f'  <rdf:Description rdf:about="" {XMP}><xmp:Rating>0</xmp:Rating></rdf:Description>', "", begin=BEGIN
        )
        + b"\0",
        0,
    ),
    "without xmpmeta": (
        f'<rdf:RDF {RDF}><rdf:Description rdf:about="" {XMP} xmp:Rating="3.0"/></rdf:RDF>'.encode(),
        3,
    ),
    "an empty element": (
        packet(f'  <rdf:Description rdf:about="" {XMP}><xmp:Rating/></rdf:Description>', EXIV2),
        0,
    ),
    "no rating": (
        packet(
            '  <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:source="a &gt; b"/>',
            ADOBE,
        ),
        0,
    ),
    "no rating, and the usual prefix means something else": (
        packet('  <rdf:Description rdf:about="" xmlns:xmp="urn:other/" xmp:Rating="1"/>', ADOBE),
        0,
    ),
}

#: What is no XMP that can be read: name -> bytes and what the message says.
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "white space": (b" \n", "is empty"),
    "text": (b"rating: 5", "no well-formed XMP"),
    "cut off": (FORMS["darktable 4"][0][:300], "no well-formed XMP"),
    "not UTF-8": (FORMS["bridge, rejected"][0].replace(b'about=""', b'about="\xff"'), "no well-formed XMP"),
    "unknown encoding": (b'<?xml version="1.0" encoding="nonsense"?><a/>', "no well-formed XMP"),
    "picture": (b"\xff\xd8\xff\xe0" + bytes(100), "no well-formed XMP"),
    "entity bomb": (
        b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]><x>&b;</x>',
        "document type declaration",
    ),
    "external entity": (
        b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>',
        "document type declaration",
    ),
    "huge": (b"<a>" + b" " * 16_000_000 + b"</a>", "more than 16 MB"),
}
