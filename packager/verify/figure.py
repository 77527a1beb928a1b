"""Figures as people read them, and names that cannot act instead of being read."""

from __future__ import annotations

import math
import unicodedata

_BIDI_CONTROLS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_HIDDEN = {"Cc", "Cs", "Zl", "Zp"}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def describe_share(share: float) -> str:
    """Returns a share as per cent with the digits that matter, never rounded up to 100 %.

    A no-break space keeps number and sign together.
    """
    if share <= 0.0 or share >= 1.0:
        return "100\u00a0%" if share >= 1.0 else "0\u00a0%"
    decimals = min(4, max(1, math.ceil(-math.log10(1.0 - share)) - 1))
    # Cut, not rounded; the slack keeps 0.9973, which has no exact double, at 99.73.
    units = min(math.floor(share * 10 ** (decimals + 2) + 1e-9), 10 ** (decimals + 2) - 1)
    floor = units / 10**decimals
    return f"{floor:.{decimals}f}\u00a0%" if floor > 0.0 else "<\u00a00.1\u00a0%"


def describe_number(value: float) -> str:
    """Returns a figure with the digits that count: `0.0123`, `3.77`, `1.9·10⁻⁵`."""
    if value == 0.0:
        return "0"
    if not math.isfinite(value):
        return "not finite"
    exponent = math.floor(math.log10(abs(value)))
    if -3 <= exponent < 5:
        return f"{value:.{max(0, 2 - exponent)}f}"
    mantissa, _, power = f"{value:.1e}".partition("e")
    return f"{mantissa}·10{str(int(power)).translate(_SUPERSCRIPT)}"


def describe_small_share(share: float) -> str:
    """Returns a share that may be tiny, such as a loss, as per cent."""
    return f"{describe_number(share * 100)}\u00a0%"


def describe_bytes(count: int) -> str:
    """Returns a size in decimal units, as disks and Hubs count."""
    if count < 1000:
        return f"{count} B"
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.{1 if size < 99.95 else 0}f} {unit}"


def describe_count(count: int, noun: str = "") -> str:
    """Returns a number with thin spaces between thousands, with its noun in the right form."""
    number = f"{count:,}".replace(",", "\u202f")
    if not noun:
        return number
    return f"{number} {noun}" if count == 1 else f"{number} {noun}s"


def printable(text: str) -> str:
    """Escapes what would act instead of being read.

    Control characters drive terminals, bidirectional overrides make a name look like another
    one, and lone surrogates cannot be written as UTF-8. Joiners stay: emoji and Indic and
    Persian words need them.
    """
    return "".join(map(_escape, text))


def _escape(char: str) -> str:
    code = ord(char)
    if unicodedata.category(char) in _HIDDEN or code in _BIDI_CONTROLS:
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    return char
