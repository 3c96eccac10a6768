"""Pictures of crowds and signs for the verifier's benchmark and tests: true ones and spoiled ones.

True ones are finer than those of one and two objects: 16×16 holds neither a crowd nor a word.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import simplejpeg

from benchmarks.scene_pictures import (
    Image,
    Maker,
    Random,
    as_written,
    erased,
    noisy,
    one_less,
    other_background,
    other_colour,
    other_shape,
    pick,
    turned_hues,
)
from data_pipeline.scenes import render
from data_pipeline.schema import lettering
from data_pipeline.schema import scenes as vocabulary
from data_pipeline.schema.scenes import Scene


def enlarged(truth: Scene, how: int = cv2.INTER_CUBIC) -> Image:
    """Drawn at 64×64, as a cascade's middle does, and interpolated to 256×256."""
    return np.asarray(cv2.resize(render(truth, 64), (256, 256), interpolation=how), np.uint8)


def coarse(truth: Scene, quality: int) -> Image:
    """After a JPEG of a low quality, with half of the chroma's resolution."""
    data = simplejpeg.encode_jpeg(render(truth, 256), quality, "RGB", "420")
    decoded: Image = simplejpeg.decode_jpeg(data, colorspace="RGB")
    return decoded


FINE: dict[str, Maker] = {
    "256": lambda t, r: render(t, 256),
    "256 after JPEG": lambda t, r: as_written(t, 256),
    "256 after JPEG of quality 60": lambda t, r: coarse(t, 60),
    "256, blur of sigma 1.5": lambda t, r: np.asarray(
        cv2.GaussianBlur(render(t, 256), (0, 0), 1.5), np.uint8
    ),
    "64 after JPEG": lambda t, r: as_written(t, 64),
    "64 to 256, bicubic": lambda t, r: enlarged(t),
    "64 to 256, bilinear": lambda t, r: enlarged(t, cv2.INTER_LINEAR),
    "256, noise of sigma 10": lambda t, r: noisy(render(t, 256), r, 10),
}


def another_beside(truth: Scene, random: Random) -> Image:
    """An object too many, like one that is there, where most room is."""
    places = [(x / 20, y / 20) for x in range(3, 18) for y in range(3, 18)]

    def room(place: tuple[float, float]) -> float:
        return min(float(np.hypot(place[0] - i.x, place[1] - i.y)) for i in truth.objects)

    x, y = max(places, key=room)
    item = replace(pick(random, truth.objects), x=x, y=y)
    return render(replace(truth, objects=(*truth.objects, item)), 256)


def changed_order(truth: Scene, random: Random) -> Image | None:
    """Two different objects of a row or column in each other's place."""
    if truth.layout == "group" or truth.counted:
        return None
    first, second, *others = (truth.objects[i] for i in random.permutation(len(truth.objects)))
    turned = replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y)
    return render(replace(truth, objects=(*turned, *others)), 256)


def standing(truth: Scene, random: Random) -> Image | None:
    """A row as a column and the other way round."""
    if truth.layout == "group":
        return None
    turned = tuple(replace(item, x=item.y, y=item.x) for item in truth.objects)
    return render(replace(truth, objects=turned), 256)


def _rewritten(truth: Scene, word: str) -> Image:
    assert truth.sign is not None
    return render(replace(truth, sign=replace(truth.sign, word=word)), 256)


def other_letter(truth: Scene, random: Random, size: int = 256) -> Image:
    """One letter of the word another one."""
    assert truth.sign is not None
    word = truth.sign.word
    place = int(random.integers(len(word)))
    letter = pick(random, [c for c in lettering.LETTERS if c != word[place]])
    changed = replace(truth.sign, word=word[:place] + letter + word[place + 1 :])
    return render(replace(truth, sign=changed), size)


def letter_missing(truth: Scene, random: Random) -> Image:
    """The word without one of its letters."""
    assert truth.sign is not None
    word = truth.sign.word
    place = int(random.integers(len(word)))
    return _rewritten(truth, word[:place] + word[place + 1 :])


def letter_twice(truth: Scene, random: Random) -> Image:
    """The word with one of its letters twice, small enough to fit."""
    assert truth.sign is not None
    sign = truth.sign
    place = int(random.integers(len(sign.word)))
    word = sign.word[: place + 1] + sign.word[place:]
    height = sign.height * len(sign.word) / len(word) * 0.9
    return render(replace(truth, sign=replace(sign, word=word, height=height)), 256)


def letters_exchanged(truth: Scene, random: Random) -> Image | None:
    """Two neighbouring letters in each other's place."""
    assert truth.sign is not None
    word = truth.sign.word
    place = int(random.integers(len(word) - 1))
    turned = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    return None if turned == word else _rewritten(truth, turned)


def other_word(truth: Scene, random: Random) -> Image:
    """Another word of the vocabulary."""
    assert truth.sign is not None
    asked = truth.sign.word
    return _rewritten(truth, pick(random, [w for w in vocabulary.WORDS if w != asked]))


def other_ink(truth: Scene, random: Random) -> Image:
    """The word in another colour."""
    assert truth.sign is not None
    asked = truth.sign.colour
    word = pick(random, [word for word in vocabulary.COLOURS if word != asked])
    return render(replace(truth, sign=replace(truth.sign, colour=word)), 256)


def part_erased(truth: Scene, random: Random) -> Image:
    """The word with its left, right, upper or lower third painted over."""
    assert truth.sign is not None
    image = render(truth, 256)
    ground = np.array(vocabulary.BACKGROUNDS[truth.background], np.uint8)
    written = (image != ground).any(2)
    rows, columns = np.flatnonzero(written.any(1)), np.flatnonzero(written.any(0))
    thirds = len(rows) // 3, len(columns) // 3
    parts = (
        (slice(None), slice(columns[0], columns[0] + thirds[1])),
        (slice(None), slice(columns[-1] + 1 - thirds[1], columns[-1] + 1)),
        (slice(rows[0], rows[0] + thirds[0]), slice(None)),
        (slice(rows[-1] + 1 - thirds[0], rows[-1] + 1), slice(None)),
    )
    image[pick(random, parts)] = ground
    return image


SPOILED_CROWD: dict[str, Maker] = {
    "blank": lambda t, r: render(replace(t, objects=()), 256),
    "half erased": erased,
    "another colour": other_colour,
    "another shape": other_shape,
    "another background": other_background,
    "one object too many": another_beside,
    "one object missing": one_less,
    "hues turned": turned_hues,
    "order changed": changed_order,
    "row for column": standing,
}
SPOILED_SIGN: dict[str, Maker] = {
    "blank": lambda t, r: render(replace(t, sign=None), 256),
    "another letter, 256": other_letter,
    "another letter, 64": lambda t, r: other_letter(t, r, 64),
    "a letter missing": letter_missing,
    "a letter twice": letter_twice,
    "letters exchanged": letters_exchanged,
    "another word": other_word,
    "another colour": other_ink,
    "another background": other_background,
    "a third erased": part_erased,
}
