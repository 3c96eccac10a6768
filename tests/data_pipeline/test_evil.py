"""Pictures made to break decoders: each ends as its list says, and what is kept is right."""

import csv
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps

from data_pipeline.decode import Limits, decode
from data_pipeline.row import Rejection
from data_pipeline.schema.dataset import REASONS

LIMITS = Limits(64_000_000)


def pillow(data: bytes) -> npt.NDArray[np.float64]:
    """As Pillow shows the first frame: turned, in sRGB (perceptual intent), on white. [H, W, 3]"""
    image = Image.open(io.BytesIO(data))
    image.load()
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey
        return np.repeat(np.asarray(image, np.float64)[..., None] * 255 / 65535, 3, 2)
    alpha: npt.NDArray[np.float64] | float = 1.0
    if image.mode in ("P", "PA", "LA") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        alpha = np.asarray(image)[..., 3:] / 255
        image = Image.fromarray(np.ascontiguousarray(np.asarray(image)[..., :3]))
    if profile:
        try:
            opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        except OSError:  # a profile that is none is passed over
            pass
        else:
            srgb = ImageCms.createProfile("sRGB")
            image = ImageCms.profileToProfile(image, opened, srgb, outputMode="RGB") or image
    return np.asarray(image.convert("RGB"), np.float64) * alpha + 255 * (1 - alpha)


def test_every_evil_picture_ends_as_expected_and_is_what_pillow_shows(shared_data: Path) -> None:
    with (shared_data / "evil" / "evil.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 150
    wrong = []
    kept = 0
    for row in rows:
        data = (shared_data / "evil" / row["file"]).read_bytes()
        try:
            picture = decode(data, LIMITS, lambda w, h: (w, h))
            shape = picture.pixels.shape
            ended = "kept" if shape == (picture.height, picture.width, 3) else "bad shape"
            if np.abs(picture.pixels - pillow(data)).mean() > 0.6:
                ended = "another picture"
            kept += 1
        except Rejection as why:
            ended = "rejected" if why.reason in REASONS and why.message else "no reason"
        may_reject, may_keep = "reject" in row["expected"], not row["expected"].startswith("reject")
        if not (ended == "kept" and may_keep) and not (ended == "rejected" and may_reject):
            wrong.append((row["file"], row["expected"], ended))
    assert not wrong
    assert kept > 120
