"""The commands of `unclip data`; what they need is imported when they run."""

from __future__ import annotations

import os
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from base.command import emit_json
from data_pipeline.search.cli import app as search_app

if TYPE_CHECKING:
    from base.places import Place
    from data_pipeline.schema.dataset import DatasetInfo

app = typer.Typer(
    name="data",
    help="From pairs of pictures and captions to webdataset shards with CLIP embeddings.",
    epilog="Example: `unclip data prepare pairs --out dataset --clip random:0`",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

_Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
_Dataset = Annotated[
    str,
    typer.Argument(
        metavar="DATASET", help="What `prepare` made: a folder, local or s3://… or gs://…"
    ),
]
_Out = Annotated[
    str,
    typer.Option(metavar="DATASET", help="Folder of the result, local or s3://… or gs://…"),
]
_Ray = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="ADDRESS",
        help="Use this Ray cluster (such as `auto` or HOST:6379) instead of an embedded one.",
    ),
]
_Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override, such as image_size=512."),
]
_CLIP_HELP = (
    "random:SEED; MODEL:WEIGHTS (an open_clip name and a file or tag, such as "
    "ViT-B-32:weights.safetensors); a RUN of stage clip; or a folder with open_clip_config.json."
)


class Form(str, Enum):
    """How a corpus is written."""

    folder = "folder"
    parquet = "parquet"
    webdataset = "webdataset"


class Split(str, Enum):
    """Which scenes a corpus holds."""

    train = "train"
    heldout = "heldout"
    unseen = "unseen"


@app.command(epilog="Example: unclip data synth corpus --count 1000 --seed 0 --form webdataset")
def synth(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the corpus.")],
    count: Annotated[int, typer.Option(help="Number of scenes.")],
    seed: Annotated[int, typer.Option(help="Every seed is another corpus.")] = 0,
    form: Annotated[Form, typer.Option(help="Files that users have.")] = Form.folder,
    split: Annotated[
        Split, typer.Option(help="Training scenes, held-out captions, or unseen combinations.")
    ] = Split.train,
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 256,
    kinds: Annotated[
        str,
        typer.Option(
            help="Kinds of scenes, equally frequent: single and pair (one object, two), crowd "
            "(three to six), sign (a written word)."
        ),
    ] = "single,pair",
    json: _Json = False,
) -> None:
    """Write synthetic captioned scenes, as inputs that users have."""
    from data_pipeline.scenes import write_scenes

    chosen = [kind.strip() for kind in kinds.split(",") if kind.strip()]
    write_scenes(out, count, seed, form.value, split.value, size, kinds=chosen)
    if json:
        made = {"count": count, "seed": seed, "form": form, "split": split, "size": size}
        made["kinds"] = chosen
        emit_json({"out": str(out), **made})
    else:
        typer.echo(f"{out}: {count} scenes")


@app.command(epilog="Example: unclip data prepare photos/ --out dataset --clip random:0")
def prepare(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Folders of pairs; parquet/csv/tsv/jsonl tables with paths, bytes or URLs; "
            "webdataset tars; or folders of them. Or published embeddings (npy and parquet). "
            "Local, s3://… or gs://…; a file also https://…",
        ),
    ],
    out: _Out,
    clip: Annotated[
        str,
        typer.Option(
            metavar="CLIP",
            help=f"none; {_CLIP_HELP} Of published embeddings: published:MODEL/WEIGHTS.",
        ),
    ] = "none",
    config: Annotated[
        Path | None, typer.Option(metavar="YAML", help="Sizes, caps and filters.")
    ] = None,
    overrides: _Overrides = None,
    ray_address: _Ray = None,
    json: _Json = False,
) -> None:
    """Make a DATASET, or go on with one: shards, metadata, and embeddings if CLIP is given."""
    from base.config import load_config
    from base.places import folder_place
    from data_pipeline.config import PrepareConfig
    from data_pipeline.job_ray import job_ray, serve_job
    from data_pipeline.pipeline import prepare_parts

    settings = load_config(config or os.devnull, PrepareConfig, overrides or [])
    if serve_job(ray_address):
        return
    with job_ray(ray_address):
        made = prepare_parts(inputs, folder_place(out), clip, settings, ray_address=ray_address)
        if not json:
            for place, info in made:
                _tell(place, info)
        elif len(parts := list(made)) == 1:
            emit_json(parts[0][1].to_json())
        else:
            emit_json({"parts": {str(place): info.to_json() for place, info in parts}})


@app.command(epilog="Example: unclip data retry dataset --out dataset-2")
def retry(
    dataset: _Dataset,
    out: _Out,
    clip: Annotated[str, typer.Option(metavar="CLIP", help=f"none; {_CLIP_HELP}")] = "none",
    overrides: _Overrides = None,
    ray_address: _Ray = None,
    json: _Json = False,
) -> None:
    """Try again what was rejected for a reason that may pass, into a DATASET of its own."""
    from base.config import load_config
    from base.places import folder_place
    from data_pipeline.config import PrepareConfig
    from data_pipeline.job_ray import job_ray, serve_job
    from data_pipeline.retry import retry as run
    from data_pipeline.schema.dataset import CONFIG_FILE, read_dataset

    before, after = folder_place(dataset), folder_place(out)
    read_dataset(before)
    settings = load_config(before / CONFIG_FILE, PrepareConfig, overrides or [])
    if serve_job(ray_address):
        return
    with job_ray(ray_address):
        info = run(before, after, clip, settings, ray_address=ray_address)
    if json:
        emit_json(info.to_json())
    else:
        _tell(after, info)


def _tell(out: Place | str, info: DatasetInfo) -> None:
    typer.echo(
        f"{out}: {info.kept} of {info.input} kept, {info.rejected} rejected, "
        f"{info.shards} shards, CLIP {info.clip.model if info.clip else 'none'}"
    )


@app.command(epilog="Example: unclip data embed dataset --clip random:1 --as second")
def embed(
    dataset: _Dataset,
    clip: Annotated[str, typer.Option(metavar="CLIP", help=_CLIP_HELP)],
    name: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="Write a further set, embeddings/NAME."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override, such as precision=bf16."),
    ] = None,
    ray_address: _Ray = None,
    json: _Json = False,
) -> None:
    """Add CLIP embeddings to a DATASET made with `--clip none`, or a second set to any."""
    from base.config import load_config
    from base.places import folder_place
    from data_pipeline.config import EmbedConfig
    from data_pipeline.embed import embed as run
    from data_pipeline.job_ray import job_ray, serve_job

    settings = load_config(os.devnull, EmbedConfig, overrides or [])
    if serve_job(ray_address):
        return
    with job_ray(ray_address):
        info = run(folder_place(dataset), clip, name, settings, ray_address=ray_address)
    if json:
        emit_json(info.to_json())
    else:
        typer.echo(f"{dataset}: {info.kept} samples embedded{f' as {name}' if name else ''}")


@app.command(epilog="Example: unclip data verify dataset --json")
def verify(dataset: _Dataset, json: _Json = False) -> None:
    """Check every hash, count and alignment of a DATASET; exit code 2 when something is wrong."""
    from base.places import folder_place
    from data_pipeline.verify import require_whole
    from data_pipeline.verify import verify as run

    report = run(folder_place(dataset))
    if json:
        emit_json({"whole": report.whole, **asdict(report)})
    else:
        for problem in report.problems[:20]:
            typer.echo(problem, err=True)
        if report.whole:
            typer.echo(f"{dataset}: whole, {report.samples} samples in {report.shards} shards")
    require_whole(report)


@app.command(epilog="Example: unclip data status dataset")
def status(dataset: _Dataset, json: _Json = False) -> None:
    """Tell how far a DATASET is, and why rows were rejected."""
    from base.places import folder_place
    from data_pipeline.status import status as run

    found = run(folder_place(dataset))
    if json:
        emit_json(asdict(found))
        return
    state = "finished" if found.finished else "not finished"
    typer.echo(f"{dataset}: {state}")
    typer.echo(f"shards    {found.shards_done}/{found.shards}, {found.shards_embedded} embedded")
    for name, kinds in found.devices.items():
        typer.echo(f"devices   {', '.join(kinds)}{f' ({name})' if name else ''}")
    typer.echo(f"rows      {found.rows_done}/{found.rows}")
    typer.echo(f"kept      {found.kept}")
    typer.echo(f"rejected  {found.rejected}")
    for reason, count in found.reasons.items():
        typer.echo(f"  {reason}  {count}")


_LocalDatasets = Annotated[
    list[str],
    typer.Argument(
        metavar="DATASET...", help="What `prepare` made: local folders, taken together as one."
    ),
]


@app.command(epilog="Example: unclip data curate dataset --as clean --set exact_duplicates=true")
def curate(
    datasets: _LocalDatasets,
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="Write selections/NAME.")],
    config: Annotated[Path | None, typer.Option(metavar="YAML", help="The rules.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A rule, such as captions.min_words=3."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of a selection of that name.")
    ] = False,
    json: _Json = False,
) -> None:
    """Select rows by rules: duplicates, scores, captions, sources; and split train from val."""
    from base.config import load_config
    from base.places import local_folder
    from data_pipeline.curate.config import CurateConfig
    from data_pipeline.curate.run import curate_together
    from data_pipeline.curate.table import print_selections

    settings = load_config(config or Path(os.devnull), CurateConfig, overrides or [])
    folders = [local_folder(dataset) for dataset in datasets]
    done = curate_together(folders, name, settings, replace=replace)
    if not json:
        print_selections(folders, done)
        return
    told = [{"made": each.made, **each.selection.to_json()} for each in done]
    parts = {str(folder): each for folder, each in zip(folders, told, strict=True)}
    emit_json(told[0] if len(told) == 1 else {"parts": parts})


@app.command(epilog="Example: unclip data stats dataset --plot dataset.png")
def stats(
    datasets: _LocalDatasets,
    selection: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only the rows of selections/NAME.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw histograms: .png, .svg or .pdf.")
    ] = None,
    json: _Json = False,
) -> None:
    """Sizes, captions, similarity, sources, duplicates and rejections of a DATASET."""
    from base.places import local_folder
    from data_pipeline.stats.collect import collect
    from data_pipeline.stats.plot import draw, require_drawable
    from data_pipeline.stats.table import print_stats

    if plot is not None:
        require_drawable(plot)
    found = collect([local_folder(dataset) for dataset in datasets], selection)
    if plot is not None:
        draw(found, plot)
    if json:
        emit_json(found.to_json())
    else:
        print_stats(found)


app.add_typer(search_app)
