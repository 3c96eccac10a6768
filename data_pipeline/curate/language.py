"""The language of a caption, told by CLD2 (pycld2; its tables are inside the package)."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache

from base.errors import UserError

UNKNOWN = "un"
_MOST_CHARACTERS = 2000  # a longer caption is judged by its beginning
_TODAY = {"iw": "he", "jw": "jv"}  # ISO 639 codes that changed after CLD2 took them up
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # CLD2 refuses text that holds them


@lru_cache(maxsize=1)
def known_languages() -> tuple[str, ...]:
    """Codes that a caption may be found to have, sorted."""
    import pycld2

    codes = dict(pycld2.LANGUAGES)
    found = {codes[name] for name in pycld2.DETECTED_LANGUAGES if name in codes}
    return tuple(sorted({_TODAY.get(code, code) for code in found} - {UNKNOWN}))


def require_languages(languages: Sequence[str], field: str) -> None:
    """Raises UserError when one of the codes is none that can be told."""
    for language in languages:
        if language not in known_languages():
            raise UserError(
                f"{field}: got {language!r}, expected codes of CLD2 such as en, de, fr, ru, zh, "
                "zh-Hant, ja (ISO 639-1 where there is one)"
            )


def language_of(text: str) -> str:
    """The code of the language that most of the text is in; `un` when it cannot be told."""
    import pycld2

    plain = _CONTROL.sub(" ", text[:_MOST_CHARACTERS])
    try:
        _, _, found = pycld2.detect(plain, bestEffort=True)
    except pycld2.error:  # what Unicode sets apart as no character
        return UNKNOWN
    code = str(found[0][1])
    return _TODAY.get(code, code)


def speaks(text: str, wanted: Collection[str], unknown: bool) -> bool:
    """Whether the text's language is one of `wanted`; `unknown` when it cannot be told."""
    language = language_of(text)
    return unknown if language == UNKNOWN else language in wanted
