"""Personal data out of texts before they are stored: what is found is replaced by a token such as <email>.

Found by shape, and where there is one by checksum: a card number by Luhn's, an IBAN by its country's length and mod 97. A name, or
a number written in words, is not found. Every pattern here takes time linear in the text.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial

Scrub = Callable[[str], str]

# Each begins with what is rare in a text, and looks behind itself afterwards: the regular expression engine skips to it.
_CARD = re.compile(r"\d(?<!\d\d)(?:[ -]?\d){12,18}(?!\d)")
_IBAN_CHECK = re.compile(r"\d(?<=[A-Za-z]{2}\d)(?<!\w[A-Za-z]{2}\d)\d")
_EMAIL = re.compile(r"[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_DIALLED = re.compile(  # +44 20 7946 0958, +44 (0)20 7946 0958, 030/1234567, (0171) 555 1234; not a time
    r"[+(0](?<![\w.+-].)(?<!\d:.)(?:\d{1,3} ?\(0\))?(?:[ )./-]{0,2}\d){6,15}(?!\w)"
)
_AMERICAN = re.compile(r"\d(?<![\w.-]\d)\d{2}\)?[ .-]\d{3}[ .-]\d{4}(?![\w-])")  # 212-555-0123, (212) 555 0123
_IBAN_LENGTHS = {
    country: int(length)
    for country, length in re.findall(
        r"(\w\w):(\d\d)",
        "AD:24 AE:23 AL:28 AT:20 AZ:28 BA:20 BE:16 BG:22 BH:22 BR:29 BY:28 CH:21 CR:22 CY:28 CZ:24 DE:22 DK:18 DO:28 "
        "EE:20 EG:29 ES:24 FI:18 FO:18 FR:27 GB:22 GE:22 GI:23 GL:18 GR:27 GT:28 HR:21 HU:28 IE:22 IL:23 IQ:23 IS:26 "
        "IT:27 JO:30 KW:30 KZ:20 LB:28 LC:32 LI:21 LT:20 LU:20 LV:21 LY:25 MC:27 MD:24 ME:22 MK:19 MR:27 MT:31 MU:30 "
        "NL:18 NO:15 PK:24 PL:28 PS:29 PT:25 QA:29 RO:24 RS:22 SA:24 SC:31 SD:18 SE:24 SI:19 SK:24 SM:27 ST:25 SV:28 "
        "TL:23 TN:24 TR:26 UA:29 VA:22 VG:24 XK:20",
    )
}


def scrubber(kinds: Iterable[str], patterns: Mapping[str, str]) -> Scrub | None:
    """One function for all that the policy names; None when it names nothing. Raises re.error for a pattern that is none.

    An IBAN and a card go before a phone number, which part of them may look like.
    """
    steps = [BUILT_IN[kind] for kind in BUILT_IN if kind in set(kinds)]
    steps += [partial(re.compile(pattern).sub, f"<{token}>") for token, pattern in patterns.items()]
    return partial(_all, steps) if steps else None


def _all(steps: list[Scrub], text: str) -> str:
    for step in steps:
        text = step(text)
    return text


def _email(text: str) -> str:
    return _EMAIL.sub("<email>", text) if "@" in text else text


def _phone(text: str) -> str:
    text = _DIALLED.sub(lambda found: found[0] if re.match(r"\([1-9]", found[0]) else "<phone>", text)
    return _AMERICAN.sub("<phone>", text)


def _card(text: str) -> str:
    return _CARD.sub(lambda found: "<card>" if _luhn(found[0]) else found[0], text)


def _luhn(number: str) -> bool:
    digits = [int(sign) for sign in reversed(number) if sign.isdecimal()]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _iban(text: str) -> str:
    parts, done = [], 0
    for found in _IBAN_CHECK.finditer(text):
        start = found.start() - 2
        end = _iban_end(text, start) if start >= done else None
        if end is not None:
            parts += [text[done:start], "<iban>"]
            done = end
    return "".join((*parts, text[done:])) if parts else text


def _iban_end(text: str, start: int) -> int | None:
    """Where the IBAN that starts here ends, single spaces inside it allowed; None when it is none."""
    length = _IBAN_LENGTHS.get(text[start : start + 2].upper(), 0)
    signs, place = "", start
    while len(signs) < length and place < len(text):
        if text[place].isascii() and text[place].isalnum():
            signs += text[place]
        elif text[place] != " " or text[place - 1] == " ":
            return None
        place += 1
    goes_on = place < len(text) and text[place].isalnum()
    if not length or len(signs) < length or goes_on:
        return None
    return place if int("".join(str(int(sign, 36)) for sign in signs[4:] + signs[:4])) % 97 == 1 else None


BUILT_IN: Mapping[str, Scrub] = {"iban": _iban, "card": _card, "phone": _phone, "email": _email}
