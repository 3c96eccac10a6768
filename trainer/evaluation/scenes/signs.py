"""The word of a sign, read letter by letter with the renderer's own outlines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from data_pipeline.schema import lettering
from data_pipeline.schema import scenes as vocabulary

from .canvas import FOREGROUND, Floats, canonical, distance_to, nearest_word

_SIDE = 128  # letters are read in pictures of this side: their strokes have three pixels or more
_CRUMB = 6  # pixels; a dot has 15
_MOST = 10  # cells that are looked at; the longest word has five letters
_BRIGHT = 70.0  # percentile of the contrast in a cell above which a pixel is all letter
_COLOUR_OFF = 30.0

_HIGH, _WIDE = 24, 32  # the patch in which letters are compared
_FILLED = 20.0  # height there of a letter's outline
_BLURS = (0.75, 1.5, 2.25)  # softness of the templates, Gaussian sigma in the patch's pixels
_LETTER_FIT = 0.65  # overlap with the best template, intersection over union
_LETTER_RIVAL = 0.03  # lead over the best template of another letter
_OUT_OF_LINE = 0.2  # x-heights that a letter's upper or lower end may lie off
UNKNOWN = "?"

ALPHABET = "".join(sorted(lettering.LETTERS))


@dataclass(frozen=True)
class ReadSign:
    """A word as it was read: a letter a cell, UNKNOWN where none could be told.

    nearest is the word of the vocabulary that looks most like it; colour is None when it could not
    be told or differs between letters.
    """

    letters: str
    nearest: str | None
    colour: str | None


def read_sign(image: NDArray[np.uint8], ground: Floats) -> ReadSign | None:
    """The word in a picture with this background, CIELAB [3]; None when it shows no lettering.

    It does when two regions or more, and half of all, are letters.
    """
    lab = canonical(image, _SIDE)
    contrast = distance_to(lab, ground)  # [_SIDE, _SIDE]
    cells = _cells(contrast)
    if not 2 <= len(cells) <= _MOST:
        return None
    read = [_read_cell(lab, ground, contrast, cell) for cell in cells]
    scores = np.stack([score for _, score in read])  # [cells, letters]
    letters = _in_line("".join(map(_letter, scores)), cells)
    told = len(letters) - letters.count(UNKNOWN)
    if told < 2 or 2 * told < len(letters):
        return None
    colours = {colour for colour, _ in read}
    return ReadSign(
        letters, _nearest(letters, scores), colours.pop() if len(colours) == 1 else None
    )


def right_letters(asked: str, letters: str) -> tuple[bool, ...]:
    """For each letter of `asked` whether `letters` has it, in order (a longest common sequence)."""
    longest = np.zeros((len(asked) + 1, len(letters) + 1), int)
    for i, j in np.ndindex(len(asked), len(letters)):
        equal = longest[i, j] + 1 if asked[i] == letters[j] else 0
        longest[i + 1, j + 1] = max(equal, longest[i, j + 1], longest[i + 1, j])
    right, i, j = [False] * len(asked), len(asked), len(letters)
    while i and j:
        if longest[i, j] == longest[i - 1, j]:
            i -= 1
        elif longest[i, j] == longest[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            right[i] = True
    return tuple(right)


def _nearest(letters: str, scores: Floats) -> str | None:
    """Of the words of as many letters the best sum of scores; of others the most letters right."""
    equal = [word for word in vocabulary.WORDS if len(word) == len(letters)]
    if equal:
        places = np.arange(len(letters))
        return max(equal, key=lambda w: scores[places, [ALPHABET.index(c) for c in w]].sum())
    best = max(vocabulary.WORDS, key=lambda word: sum(right_letters(word, letters)))
    return best if any(right_letters(best, letters)) else None


def _cells(distance: Floats) -> list[NDArray[np.bool_]]:
    """Masks of the regions that stand out, from left to right; one above another is one cell."""
    near = cv2.dilate(distance, np.ones((9, 9), np.uint8))
    mask = (distance > np.maximum(FOREGROUND, 0.5 * near)).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    kept = [label for label in range(1, count) if stats[label, cv2.CC_STAT_AREA] >= _CRUMB]
    if len(kept) > 2 * _MOST:
        return []
    kept.sort(key=lambda label: int(stats[label, cv2.CC_STAT_LEFT]))
    cells: list[NDArray[np.bool_]] = []
    end = -1
    for label in kept:
        first, wide = (int(stats[label, i]) for i in (cv2.CC_STAT_LEFT, cv2.CC_STAT_WIDTH))
        if first < end - 1:
            cells[-1] |= labels == label
        else:
            cells.append(labels == label)
        end = max(end, first + wide)
    return cells


def _read_cell(
    lab: Floats, ground: Floats, contrast: Floats, cell: NDArray[np.bool_]
) -> tuple[str | None, Floats]:
    """A cell's colour, and its overlap with every letter. [letters]"""
    bright = cell & (contrast >= np.percentile(contrast[cell], _BRIGHT))
    colour = np.median(lab[bright], axis=0).astype(np.float32)
    name = nearest_word(colour, _COLOUR_OFF)
    way = colour - ground
    around = cv2.dilate(cell.astype(np.uint8), np.ones((3, 3), np.uint8))
    along = ((lab - ground) @ way) / max(float(way @ way), 1.0)
    alpha = np.asarray(np.clip(along, 0, 1) * around, np.float32)
    overlap = _overlap(alpha, cell)
    return name if name in vocabulary.COLOURS else None, overlap


def _overlap(alpha: Floats, cell: NDArray[np.bool_]) -> Floats:
    rows, columns = np.flatnonzero(cell.any(1)), np.flatnonzero(cell.any(0))
    scale = _FILLED / (rows[-1] + 1 - rows[0])
    x, y = (columns[0] + columns[-1]) / 2, (rows[0] + rows[-1]) / 2
    place = np.array(
        [[scale, 0, (_WIDE - 1) / 2 - scale * x], [0, scale, (_HIGH - 1) / 2 - scale * y]]
    )
    patch = cv2.warpAffine(alpha, place, (_WIDE, _HIGH), flags=cv2.INTER_LINEAR)
    patch = cv2.GaussianBlur(patch, (0, 0), _BLURS[0])
    bank = _templates()  # [letters, blurs, H, W]
    overlap = np.minimum(bank, patch).sum((2, 3)) / np.maximum(bank, patch).sum((2, 3))
    best: Floats = overlap.max(1)
    return best


def _letter(scores: Floats) -> str:
    second, first = np.argsort(scores)[-2:]
    if scores[first] < _LETTER_FIT or scores[first] - scores[second] < _LETTER_RIVAL:
        return UNKNOWN
    return ALPHABET[int(first)]


def _in_line(letters: str, cells: list[NDArray[np.bool_]]) -> str:
    """The letters without those that do not stand as high and low as the others have them.

    One base line and one x-height are fitted to where the letters begin and end: a b whose upper
    part is missing, say, does not reach as high as it should.
    """
    known = [place for place, letter in enumerate(letters) if letter != UNKNOWN]
    if not known:
        return letters
    shown: list[int] = []
    asked: list[float] = []
    for place in known:
        rows = np.flatnonzero(cells[place].any(1))
        shown += [int(rows[0]), int(rows[-1]) + 1]
        asked += lettering.letter_extent(letters[place])[2:]
    ends = np.column_stack([np.ones(len(asked)), asked])  # [2 · known, 2]
    line, *_ = np.linalg.lstsq(ends, np.array(shown, float))
    off = np.abs(ends @ line - shown).reshape(-1, 2).max(1) > _OUT_OF_LINE * line[1]
    wrong = {place for place, is_off in zip(known, off, strict=True) if is_off}
    return "".join(UNKNOWN if i in wrong else letter for i, letter in enumerate(letters))


@cache
def _templates() -> Floats:
    """Every letter filling the patch's height, at several softnesses: [letters, blurs, H, W]."""
    bank: list[Floats] = []
    for letter in ALPHABET:
        low_x, high_x, low_y, high_y = lettering.letter_extent(letter)
        height = _FILLED / (high_y - low_y)  # the x-height, in the patch's pixels
        x = np.arange(_WIDE) - (_WIDE - 1) / 2 + height * (low_x + high_x) / 2
        y = np.arange(_HIGH) - (_HIGH - 1) / 2 + height * (low_y + high_y) / 2
        sharp = lettering.letter_coverage(
            letter, x.astype(np.float32), y.astype(np.float32), height
        )
        bank += [np.asarray(cv2.GaussianBlur(sharp, (0, 0), s), np.float32) for s in _BLURS]
    stacked: Floats = np.stack(bank)
    return stacked.reshape(len(ALPHABET), len(_BLURS), _HIGH, _WIDE)
