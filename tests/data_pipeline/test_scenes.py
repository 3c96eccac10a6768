"""The synthetic corpus: the same bytes however it is made, splits that hold, pictures that fit."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
from hypothesis import example, given, settings
from hypothesis import strategies as st

from base.errors import UserError
from data_pipeline.scenes import Form, jpeg, render, scene, write_scenes
from data_pipeline.scenes.draw import MARGIN, SPLITS, Split
from data_pipeline.schema import scenes as vocabulary
from data_pipeline.schema.captions import all_captions
from data_pipeline.schema.scenes import Scene, is_held_out, is_unseen

FORMS: tuple[Form, ...] = ("folder", "parquet", "webdataset")
seeds = st.integers(0, 2**40)
indices = st.integers(0, 10**9)
splits = st.sampled_from(SPLITS)


def digest(seed: int, split: Split) -> str:
    """SHA-256 over captions, truths and pixels at two sizes of eight scenes."""
    total = hashlib.sha256()
    for index in range(8):
        drawn, caption = scene(seed, index, split)
        total.update(json.dumps([caption, drawn.to_json()]).encode())
        total.update(render(drawn, 256).tobytes() + render(drawn, 64).tobytes())
    return total.hexdigest()


@pytest.mark.parametrize(
    ("split", "golden"),
    [
        ("train", "5002edc600cdb4d09a1ddab3365e9f34"),
        ("heldout", "ebb66790dadbd6e12fd8b636ab06a9ae"),
        ("unseen", "c7b3dced72ccbe09d95f568490900a37"),
    ],
)
def test_scenes_stay_what_they_were(split: Split, golden: str) -> None:
    assert digest(7, split)[:32] == golden


@given(seeds, indices, splits)
@settings(max_examples=300)
def test_splits_keep_their_promise(seed: int, index: int, split: Split) -> None:
    drawn, caption = scene(seed, index, split)
    assert (drawn, caption) == scene(seed, index, split)
    assert is_unseen(drawn) == (split == "unseen")
    if split != "unseen":
        assert is_held_out(caption) == (split == "heldout")
    assert Scene.from_json(json.loads(json.dumps(drawn.to_json()))) == drawn


@given(seeds, indices, splits)
@example(225, 225, "train")  # two wide triangles, side by side
@settings(max_examples=300)
def test_objects_lie_inside_apart_and_as_related(seed: int, index: int, split: Split) -> None:
    drawn, _ = scene(seed, index, split)
    boxes = []
    for item in drawn.objects:
        left, right, up, down = (r * item.radius for r in vocabulary.shape_extent(item.shape))
        boxes.append((item.x - left, item.y - up, item.x + right, item.y + down))
        assert min(boxes[-1][:2]) >= MARGIN - 1e-3
        assert max(boxes[-1][2:]) <= 1 - MARGIN + 1e-3
    if drawn.relation is None:
        assert len(boxes) == 1
        return
    first, second = drawn.objects
    assert first.combination != second.combination
    across, down = second.x - first.x, second.y - first.y
    right_way = {"left of": across, "right of": -across, "above": down, "below": -down}
    other = down if drawn.relation in ("left of", "right of") else across
    assert right_way[drawn.relation] > 1.3 * abs(other)
    gap = [max(boxes[0][i], boxes[1][i]) - min(boxes[0][i + 2], boxes[1][i + 2]) for i in (0, 1)]
    assert max(gap) >= 0.14 - 1e-3


@given(seeds, indices, splits)
@settings(max_examples=200)
def test_captions_name_the_truth(seed: int, index: int, split: Split) -> None:
    drawn, caption = scene(seed, index, split)
    assert caption in all_captions(drawn)
    for text in all_captions(drawn):
        assert understood(text) == (
            drawn.background,
            [item.combination for item in drawn.objects],
            drawn.relation,
        )
        assert len(text.split()) <= 16
        assert text == text.lower()
        for noun, following in zip(text.split(), text.split()[1:], strict=False):
            if noun in ("a", "an"):
                assert (noun == "an") == (following[0] in "aeiou")


def understood(text: str) -> tuple[str, list[tuple[str, str]], str | None]:
    """A caption read back word by word, knowing the vocabulary and none of the phrasings."""
    words = text.replace(",", "").split()
    grounds = [word for word in words if word in vocabulary.BACKGROUNDS]
    colours = [word for word in words if word in vocabulary.COLOURS]
    shapes = [word for word in words if word in vocabulary.SHAPES]
    names = {"left": "left of", "right": "right of", "above": "above"}
    names |= {"below": "below", "under": "below"}
    relations = [names[word] for word in words if word in names]
    assert len(grounds) == 1
    assert len(relations) == len(shapes) - 1
    return grounds[0], list(zip(colours, shapes, strict=True)), (*relations, None)[0]


def test_sizes_named_are_the_sizes_drawn() -> None:
    named = 0
    for index in range(400):
        drawn, caption = scene(5, index, "train")
        for item in drawn.objects:
            noun = f"{item.size} {item.colour} {item.shape}"
            named += noun in caption
            for size in set(vocabulary.SIZES) - {item.size}:
                other = any(o.size == size and o.colour == item.colour for o in drawn.objects)
                assert other or f"{size} {item.colour}" not in caption
    assert 50 < named < 350  # sometimes named, sometimes not


def test_every_word_and_phrasing_is_used() -> None:
    drawn = [scene(3, index, "train") for index in range(3000)]
    pairs = [(s, c) for s, c in drawn if s.relation is not None]
    assert 0.45 < len(pairs) / len(drawn) < 0.55
    assert {s.background for s, _ in drawn} == set(vocabulary.BACKGROUNDS)
    assert {s.relation for s, _ in pairs} == set(vocabulary.RELATIONS)
    looks = {o.combination for s, _ in drawn for o in s.objects}
    everything = {(c, s) for c in vocabulary.COLOURS for s in vocabulary.SHAPES}
    assert looks == everything - vocabulary.UNSEEN_COMBINATIONS
    assert len({c for s, c in drawn if s.relation is None}) > 800


def test_unseen_pairs_of_seen_objects_exist() -> None:
    drawn = [scene(3, index, "unseen")[0] for index in range(300)]
    looks = [{o.combination for o in s.objects} for s in drawn]
    assert any(not look & vocabulary.UNSEEN_COMBINATIONS for look in looks)


def test_colours_are_told_apart() -> None:
    words = vocabulary.COLOURS | vocabulary.BACKGROUNDS
    rgb = np.array([list(words.values())], np.float32) / 255
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[0]
    close = {(a, b): float(np.linalg.norm(lab[a] - lab[b])) for a, b in combinations(range(12), 2)}
    assert len(words) == 12
    assert min(close.values()) >= 32


@pytest.mark.parametrize(("side", "tolerance"), [(128, 20), (64, 6), (16, 6)])
def test_edges_are_anti_aliased(side: int, tolerance: int) -> None:
    """A small picture is the area average of a large one: within a few of 255 grey levels."""
    worst = 0.0
    for index in range(60):
        drawn, _ = scene(11, index, "train")
        large = cv2.resize(render(drawn, 1024), (side, side), interpolation=cv2.INTER_AREA)
        apart = np.abs(render(drawn, side).astype(int) - large)
        worst = max(worst, float(apart.max()))
    assert worst <= tolerance


@pytest.mark.parametrize("shape", vocabulary.SHAPES)
def test_area_and_extent_belong_to_the_outline(shape: str) -> None:
    at = np.arange(-200, 201, dtype=np.float32)
    cover = vocabulary.coverage(shape, at, at, 100)
    assert cover.sum() / 100**2 == pytest.approx(vocabulary.shape_area(shape), rel=2e-3)
    rows, columns = (np.flatnonzero(cover.max(axis) > 0.5) - 200 for axis in (1, 0))
    found = (-columns[0], columns[-1], -rows[0], rows[-1])
    assert np.array(found) / 100 == pytest.approx(vocabulary.shape_extent(shape), abs=0.02)
    centre = (cover.sum(0) @ at / cover.sum(), cover.sum(1) @ at / cover.sum())
    assert centre == pytest.approx((0, 0), abs=0.2)


@pytest.mark.parametrize(
    "change",
    [{"background": "mauve"}, {"relation": "left of"}, {"objects": []}, {"objects": [{}]}],
)
def test_truth_outside_the_vocabulary_is_refused(change: dict[str, object]) -> None:
    drawn = next(s for i in range(20) for s in [scene(0, i, "train")[0]] if s.relation is None)
    with pytest.raises(ValueError, match="scene"):
        Scene.from_json(drawn.to_json() | change)


# --- written ----------------------------------------------------------------------------------


def read_back(out: Path) -> dict[str, tuple[bytes, str, str]]:
    """Key → JPEG, caption, json of a corpus of any form."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(out.glob("[0-9]*/*.*")):
        found.setdefault(path.stem, {})[path.suffix[1:]] = path.read_bytes()
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, suffix = member.name.split(".")
                data = tar.extractfile(member)
                assert data is not None
                found.setdefault(key, {})[suffix] = data.read()
    for path in sorted(out.glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            pair = {"jpg": row["image"], "txt": row["caption"].encode()}
            found[row["key"]] = pair | {"json": row["json"].encode()}
    return {k: (v["jpg"], v["txt"].decode(), v["json"].decode()) for k, v in found.items()}


def all_bytes(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_three_forms_hold_the_same_pairs(tmp_path: Path) -> None:
    for form in FORMS:
        write_scenes(tmp_path / form, 60, 4, form, "heldout", size=48)
    pairs = [read_back(tmp_path / form) for form in FORMS]
    assert pairs[0] == pairs[1] == pairs[2]
    assert list(pairs[0]) == [f"{index:09d}" for index in range(60)]
    for index, (image, caption, truth) in enumerate(pairs[0].values()):
        drawn, text = scene(4, index, "heldout")
        assert (caption, json.loads(truth)) == (text, {"scene": drawn.to_json()})
        pixels = simplejpeg.decode_jpeg(image, colorspace="RGB")
        assert pixels.shape == (48, 48, 3)
        assert np.abs(pixels.astype(int) - render(drawn, 48)).mean() < 4


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_number_of_processes_does_not_matter(tmp_path: Path, form: Form) -> None:
    write_scenes(tmp_path / "one", 2100, 9, form, "train", size=16, workers=1)
    write_scenes(tmp_path / "two", 2100, 9, form, "train", size=16, workers=2)
    assert len(read_back(tmp_path / "one")) == 2100
    assert all_bytes(tmp_path / "one") == all_bytes(tmp_path / "two")


def test_tars_are_plain_ustar(tmp_path: Path) -> None:
    write_scenes(tmp_path, 3, 0, "webdataset", "train", size=16)
    data = (tmp_path / "00000.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    assert [m.name for m in members][:3] == ["000000000.jpg", "000000000.txt", "000000000.json"]
    assert {(m.type, m.mode, m.mtime, m.uid, m.gid) for m in members} == {
        (tarfile.REGTYPE, 0o644, 0, 0, 0)
    }


def test_jpeg_keeps_the_colours() -> None:
    drawn, _ = scene(0, 0, "train")
    image = render(drawn, 256)
    decoded = simplejpeg.decode_jpeg(jpeg(image), colorspace="RGB")
    assert np.abs(decoded.astype(int) - image).mean() < 1
    assert simplejpeg.decode_jpeg_header(jpeg(image))[2:] == ("YCbCr", "444")


def test_a_whole_corpus_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path, 5, 0, "folder", "train", size=16)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    write_scenes(tmp_path, 5, 0, "folder", "train", size=16)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert "already there" in capsys.readouterr().err


def test_other_settings_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 5, 0, "folder", "train", size=16)
    with pytest.raises(UserError, match=r"settings \(seed\)"):
        write_scenes(tmp_path / "scenes", 5, 1, "folder", "train", size=16)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"letter\.txt"):
        write_scenes(tmp_path / "mine", 5, 0, "folder", "train", size=16)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"count": 0}, "count"), ({"size": 2}, "size"), ({"form": "zip"}, "form: got 'zip'")],
)
def test_impossible_settings_are_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    asked: dict[str, object] = {"count": 5, "seed": 0, "form": "folder", "split": "train"}
    with pytest.raises(UserError, match=message):
        write_scenes(tmp_path / "out", **(asked | change))  # type: ignore[arg-type]


PROGRAM = """
import sys
from pathlib import Path
from data_pipeline.scenes import write_scenes
if __name__ == "__main__":
    write_scenes(Path(sys.argv[1]), 2500, 3, sys.argv[2], "train", size=128, workers=2)
"""


@pytest.mark.parametrize("form", ["folder", "webdataset"])
def test_a_killed_run_is_not_taken_for_whole_and_goes_on(tmp_path: Path, form: Form) -> None:
    out, program = tmp_path / "killed", tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(program), str(out), form]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as running:
        suffix = "[0-9]" if form == "folder" else "tar"
        while not list(out.glob(f".work/0*{suffix}")):
            assert running.poll() is None
            time.sleep(0.01)
        with pytest.raises(UserError, match=f"pid {running.pid}"):
            write_scenes(out, 2500, 3, form, "train", size=128)
        running.send_signal(signal.SIGKILL)
    assert not (out / "scenes.json").exists()
    assert not read_back(out)
    finished = subprocess.run(command, env=environment, check=False, stderr=subprocess.DEVNULL)
    assert finished.returncode == 0
    whole = tmp_path / "whole"
    write_scenes(whole, 2500, 3, form, "train", size=128, workers=1)
    assert all_bytes(out) == all_bytes(whole)
