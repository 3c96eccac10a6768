"""The commands of `unclip generate`; what needs torch is imported when it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from base.command import emit_json
from base.errors import NothingUsable, UserError

if TYPE_CHECKING:
    from trainer.sampling.requests import Request

app = typer.Typer(
    help="Make, vary, blend, edit and extend pictures with a trained cascade.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

CascadePath = Annotated[Path, typer.Argument(help="A cascade.yaml, or the folder that holds it.")]
Picture = Annotated[Path, typer.Argument(help="A picture; its middle square is taken.")]
Out = Annotated[Path, typer.Option(help="Folder for the pictures.")]
Count = Annotated[int, typer.Option(min=1, help="Pictures of each.")]
Frames = Annotated[int, typer.Option(min=2, help="Pictures on the way, both ends included.")]
Seed = Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Every seed gives other pictures.")]
Batch = Annotated[int, typer.Option(min=1, help="Pictures drawn together.")]
Weights = Annotated[
    str | None, typer.Option(help="`raw`, `ema`, `ema_0.050` …; without it, the cascade's.")
]
Override = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="A.B=C",
        help="A value over cascade.yaml's: `decoder.guidance=2`, `decoder.steps=50`, "
        "`decoder.sampler=dpm++`, `upsamplers.0.steps=4`.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command(
    epilog="Examples: `unclip generate text runs/demo 'a red circle on a white background'` · "
    "`unclip generate text runs/demo --file captions.txt --count 4 --seed 7 --out pictures` · "
    "`unclip generate text runs/demo 'a red circle' --candidates 4 --negative 'a blue square'` · "
    "`unclip generate text runs/demo 'a red circle' --set decoder.guidance=2`. "
    "The noise of a picture follows from seed and position, whatever the batch."
)
def text(
    cascade: CascadePath,
    captions: Annotated[list[str] | None, typer.Argument(help="One or several captions.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="A text file with one caption a line; they come last.")
    ] = None,
    out: Out = Path("pictures"),
    count: Count = 1,
    candidates: Annotated[
        int, typer.Option(min=1, help="Draw so many for each picture; CLIP chooses the best.")
    ] = 1,
    negative: Annotated[
        str | None, typer.Option(help="A caption to lead away from, in place of the empty one.")
    ] = None,
    seed: Seed = 0,
    batch: Batch = 16,
    weights: Weights = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Pictures of captions: 000000.png and so on, and pictures.json that says what they show.

    Stopped in the middle, the same command goes on where it was.
    """
    wanted = [*(captions or []), *(_read_captions(file) if file else [])]
    wanted = [caption.strip() for caption in wanted if caption.strip()]
    if not wanted:
        raise UserError("no caption: give one or more, or --file with one a line")
    from trainer.sampling.asked import of_text

    repeated = [caption for caption in wanted for _ in range(count)]
    asked = of_text(repeated, seed, candidates, negative)
    _fulfil(asked, cascade, out, batch, weights, override, json)


@app.command(
    epilog="Examples: `unclip generate variations runs/demo photo.jpg --count 8` · "
    "`unclip generate variations runs/demo photo.jpg --eta 0.5 --out near` · "
    "`unclip generate variations runs/demo photo.jpg --fresh --out far`"
)
def variations(
    cascade: CascadePath,
    pictures: Annotated[list[Path], typer.Argument(help="Pictures to vary.")],
    out: Out = Path("variations"),
    count: Count = 4,
    eta: Annotated[
        float, typer.Option(min=0, max=1, help="0 gives the picture again, 1 varies most.")
    ] = 1.0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin with new noise, not the picture's own.")
    ] = False,
    seed: Seed = 0,
    batch: Batch = 16,
    weights: Weights = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Pictures with the same content, otherwise composed (paper section 3.1)."""
    from trainer.sampling.asked import of_variations

    asked = of_variations(pictures, count, eta, not fresh, seed)
    _fulfil(asked, cascade, out, batch, weights, override, json)


@app.command(epilog="Example: `unclip generate reconstruct runs/demo a.png b.png --out again`")
def reconstruct(
    cascade: CascadePath,
    pictures: Annotated[list[Path], typer.Argument(help="Pictures to make again.")],
    out: Out = Path("reconstructions"),
    seed: Seed = 0,
    batch: Batch = 16,
    weights: Weights = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Pictures from their own latents: z_i by CLIP, x_T by DDIM inversion."""
    from trainer.sampling.asked import of_reconstruction

    _fulfil(of_reconstruction(pictures, seed), cascade, out, batch, weights, override, json)


@app.command(
    epilog="Examples: `unclip generate interpolate runs/demo a.png b.png --frames 9` · "
    "`unclip generate interpolate runs/demo --texts 'a red circle' 'a blue square'`"
)
def interpolate(
    cascade: CascadePath,
    start: Annotated[str, typer.Argument(help="A picture; with --texts a caption.")],
    end: Annotated[str, typer.Argument(help="Another one.")],
    texts: Annotated[
        bool, typer.Option("--texts", help="Between captions, not between pictures.")
    ] = False,
    out: Out = Path("interpolation"),
    frames: Frames = 8,
    seed: Seed = 0,
    batch: Batch = 16,
    weights: Weights = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Pictures on the way from one to another (paper section 3.2)."""
    from trainer.sampling.asked import of_interpolation, of_text_interpolation

    if texts:
        asked = of_text_interpolation(start, end, frames, seed)
    else:
        asked = of_interpolation(Path(start), Path(end), frames, seed)
    _fulfil(asked, cascade, out, batch, weights, override, json)


@app.command(
    epilog="Example: `unclip generate text-diff runs/demo photo.jpg 'a photo of a landscape in "
    "winter' 'a photo of a landscape in autumn' --most 0.4`"
)
def text_diff(
    cascade: CascadePath,
    picture: Picture,
    before: Annotated[str, typer.Argument(help="A caption of the picture as it is.")],
    after: Annotated[str, typer.Argument(help="A caption of what it is to become.")],
    out: Out = Path("text-diff"),
    frames: Frames = 6,
    most: Annotated[
        float, typer.Option(min=0, max=1, help="How far the last picture goes (paper: 0.25–0.5).")
    ] = 0.5,
    seed: Seed = 0,
    batch: Batch = 16,
    weights: Weights = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """A picture changed as from one caption to another (paper section 3.3)."""
    from trainer.sampling.asked import of_text_diff

    asked = of_text_diff(picture, before, after, frames, most, seed)
    _fulfil(asked, cascade, out, batch, weights, override, json)


@app.command(
    epilog="Examples: `unclip generate inpaint runs/demo a.jpg 'a red circle' --mask mask.png` · "
    "`unclip generate inpaint runs/demo a.jpg 'a red circle' --box 0,0,128,256 --count 4`"
)
def inpaint(
    cascade: CascadePath,
    picture: Picture,
    caption: Annotated[str, typer.Argument(help="What the whole picture is to show.")],
    mask: Annotated[
        Path | None, typer.Option(help="A picture of the same size, white where to paint.")
    ] = None,
    box: Annotated[
        str | None,
        typer.Option(metavar="LEFT,TOP,RIGHT,BOTTOM", help="Where to paint, in pixels."),
    ] = None,
    out: Out = Path("inpainted"),
    count: Count = 1,
    seed: Seed = 0,
    batch: Batch = 16,
    weights: Weights = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Paint a part of a picture anew, as a caption says; the rest stays, pixel by pixel."""
    if (mask is None) == (box is None):
        raise UserError("where to paint: expected either --mask or --box")
    from trainer.sampling.asked import of_inpainting

    where = mask if mask is not None else _corners(box or "")
    asked = of_inpainting(picture, where, caption, count, seed)
    _fulfil(asked, cascade, out, batch, weights, override, json)


@app.command(
    epilog="Examples: `unclip generate outpaint runs/demo photo.jpg --size 512x256` · "
    "`unclip generate outpaint runs/demo photo.jpg 'a red circle' --size 1024x1024 --count 4`"
)
def outpaint(
    cascade: CascadePath,
    picture: Picture,
    caption: Annotated[
        str | None, typer.Argument(help="What the whole is to show; else as the picture.")
    ] = None,
    size: Annotated[
        str, typer.Option(metavar="WIDTHxHEIGHT", help="Of the result, in pixels.")
    ] = "512x512",
    out: Out = Path("outpainted"),
    count: Count = 1,
    seed: Seed = 0,
    batch: Batch = 16,
    weights: Weights = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Go on beyond a picture's border, to any size; the picture stays in the middle."""
    from trainer.sampling.asked import of_outpainting

    asked = of_outpainting(picture, caption, _size(size), count, seed)
    _fulfil(asked, cascade, out, batch, weights, override, json)


@app.command(
    epilog="Example: `unclip generate pca runs/demo photo.jpg --data runs/demo/data/train "
    "--dims 2,4,8,16,32`"
)
def pca(
    cascade: CascadePath,
    pictures: Annotated[list[Path], typer.Argument(help="Pictures to look at.")],
    data: Annotated[Path, typer.Option(help="The DATASET whose z_i give the directions.")],
    dims: Annotated[
        str, typer.Option(help="How many directions are left, smallest first.")
    ] = "20,30,40,80,120,160,200,320",
    out: Out = Path("pca"),
    seed: Seed = 0,
    batch: Batch = 16,
    weights: Weights = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """What is seen of a picture in the first principal directions of CLIP's space (section 3.4)."""
    from trainer.sampling.asked import of_pca

    asked = of_pca(pictures, data, _numbers(dims), seed)
    _fulfil(asked, cascade, out, batch, weights, override, json)


def _fulfil(
    asked: Request,
    cascade: Path,
    out: Path,
    batch: int,
    weights: str | None,
    override: list[str] | None,
    json: bool,
) -> None:
    from trainer.sampling.requests import fulfil, read_settings

    paths = fulfil(asked, cascade, out, batch, weights, override or ())
    if json:
        shown: list[dict[str, Any]] = [{"file": str(p), **read_settings(p)} for p in paths]
        emit_json({"out": str(out), "seed": asked.seed, "pictures": shown})
    else:
        typer.echo(f"{out}: {len(paths)} pictures")


def _read_captions(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()  # with a byte-order mark or not
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text") from error
    if not any(line.strip() for line in lines):
        raise NothingUsable(f"{file}: no caption in it")
    return lines


def _size(text: str) -> tuple[int, int]:
    """(height, width)."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UserError(f"--size: got {text!r}, expected WIDTHxHEIGHT such as 512x512")
    return int(height), int(width)


def _corners(text: str) -> tuple[int, int, int, int]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 4 and all(part.isdecimal() for part in parts):
        left, top, right, bottom = map(int, parts)
        if left < right and top < bottom:
            return left, top, right, bottom
    raise UserError(f"--box: got {text!r}, expected LEFT,TOP,RIGHT,BOTTOM such as 0,0,128,256")


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--dims: got {text!r}, expected numbers above 0 such as 2,4,8")
    return sorted({int(part) for part in parts})
