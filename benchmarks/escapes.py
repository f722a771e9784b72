"""Sequences that steer a terminal or hide what is written, by kind."""

ESC = "\x1b"

KINDS = {
    "bell": "\x07",
    "backspace": "good\x08\x08\x08\x08evil",
    "carriage return": "good\revil",
    "vertical tab": "a\x0bb",
    "form feed": "a\x0cb",
    "delete": "a\x7fb",
    "null": "a\x00b",
    "shift out and in": "\x0ea\x0f",
    "cancel and substitute": "\x18\x1a",
    "end of input": "\x04\x03\x1c",
    "CSI colours": f"{ESC}[31;1;5m",
    "CSI hidden text": f"{ESC}[8mhidden{ESC}[28m",
    "CSI cursor moves": f"{ESC}[3A{ESC}[10;10H",
    "CSI erase": f"{ESC}[2J{ESC}[K",
    "CSI scroll region": f"{ESC}[1;2r",
    "CSI scroll": f"{ESC}[5S{ESC}[5T",
    "CSI insert mode": f"{ESC}[4h",
    "CSI window": f"{ESC}[8;1;1t{ESC}[2t",
    "CSI repeat": f"a{ESC}[99999999b",
    "DA query": f"{ESC}[c{ESC}[>c",
    "DSR query": f"{ESC}[6n",
    "title report": f"{ESC}[21t",
    "alternate screen": f"{ESC}[?1049h",
    "mouse modes": f"{ESC}[?1000h{ESC}[?1006h",
    "bracketed paste": f"{ESC}[?2004h{ESC}[200~rm{ESC}[201~",
    "invisible cursor": f"{ESC}[?25l",
    "soft reset": f"{ESC}[!p",
    "full reset": f"{ESC}c",
    "character set": f"{ESC}(0{ESC}%@",
    "index and save": f"{ESC}7{ESC}D{ESC}M{ESC}8",
    "OSC title": f"{ESC}]0;title\x07",
    "OSC link": f"{ESC}]8;;http://x{ESC}\\shown{ESC}]8;;{ESC}\\",
    "OSC clipboard": f"{ESC}]52;c;cm0gLXJm\x07",
    "OSC palette": f"{ESC}]4;1;rgb:0/0/0{ESC}\\",
    "iTerm image": f"{ESC}]1337;File=inline=1:AAAA\x07",
    "DCS": f"{ESC}P$q{ESC}\\",
    "sixel": f"{ESC}Pq#0;2;0;0;0~~{ESC}\\",
    "APC, kitty graphics": f"{ESC}_Gf=24,a=T;AAAA{ESC}\\",
    "PM": f"{ESC}^private{ESC}\\",
    "SOS": f"{ESC}Xstring{ESC}\\",
    "C1 CSI": "\x9b2J",
    "C1 OSC": "\x9d0;title\x9c",
    "C1 DCS": "\x90q\x9c",
    "C1 others": "\x84\x85\x8d\x8e\x98\x9e\x9f",
    "bidi override": "\u202eabc\u202c",
    "bidi embedding": "\u202a\u202b\u202d",
    "bidi isolate": "\u2066\u2067\u2068\u2069",
    "bidi marks": "\u200e\u200f\u061c",
    "zero width": "pay\u200bpal\u2060\u180e",
    "joiners between letters": "pay\u200dpal\u200cx",
    "byte order mark": "\ufeffx",
    "soft hyphen": "pass\u00adword",
    "interlinear annotation": "\ufff9a\ufffab\ufffb",
    "tag characters": "\U000e0001\U000e0041\U000e007f",
    "separators": "a\u2028b\u2029c",
    "variation selectors": "a\ufe01\U000e0100\U000e0101",
    "deprecated format": "\u206a\u206f",
    "musical format": "\U0001d173\U0001d17a",
}
"""A text of each kind."""


def raw(text: str) -> set[str]:
    """Characters of a program's output that are neither printed nor a line's end or a tab.

    >>> sorted(raw("a\\x1b[2Jb\\n\\u202e"))
    ['\\x1b', '\\u202e']
    """
    lines = text.replace("\n", "").replace("\t", "")
    # Spaces of other widths and new characters are no faults; `isprintable` has no place for them.
    return {c for c in lines if not c.isprintable() and c not in _SPACES}


_SPACES = {chr(i) for i in (0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000)}
