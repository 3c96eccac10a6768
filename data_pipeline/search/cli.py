"""`unclip data index` and `unclip data search`; what they need is imported when they run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from base.command import emit_json

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)

_Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
_Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="A local folder with embeddings.")]
_Embeddings = Annotated[
    str | None,
    typer.Option(
        "--embeddings", metavar="NAME", help="A further set, as made by `embed --as NAME`."
    ),
]


@app.command(epilog="Example: unclip data index dataset --index-memory 2G")
def index(
    dataset: _Dataset,
    embeddings: _Embeddings = None,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="What the building may take.")
    ] = "16G",
    index_memory: Annotated[
        str,
        typer.Option(metavar="SIZE", help="What an index may take; less makes it rougher."),
    ] = "4G",
    environment: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            envvar="UNCLIP_RETRIEVAL",
            help="Environment with autofaiss, when it is not where `make retrieval` builds it.",
        ),
    ] = None,
    json: _Json = False,
) -> None:
    """Make a k-NN index of the embeddings, for `search` and for clip-retrieval's back end."""
    from base.places import local_folder
    from data_pipeline.search.build import build

    record, is_new = build(
        local_folder(dataset),
        embeddings,
        memory=memory,
        index_memory=index_memory,
        environment=environment,
    )
    if json:
        emit_json({"dataset": str(dataset), "new": is_new, **record.to_json()})
    else:
        kinds = ", ".join(f"{kind} {key}" for kind, key in record.kinds.items())
        told = "indexed" if is_new else "are indexed already"
        typer.echo(f"{dataset}: {record.rows} samples {told}: {kinds}")


@app.command(epilog='Example: unclip data search dataset "a red circle" --clip random:0')
def search(
    dataset: _Dataset,
    clip: Annotated[
        str,
        typer.Option(metavar="CLIP", help="The CLIP that made the embeddings, as for `embed`."),
    ],
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help='Such as "a red circle".')
    ] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Search with a picture instead of a text.")
    ] = None,
    count: Annotated[int, typer.Option(help="How many pictures.")] = 20,
    embeddings: _Embeddings = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Look at every row, also where there is an index.")
    ] = False,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page of results.")] = Path(
        "results.html"
    ),
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Do not open the page in a browser.")
    ] = False,
    json: _Json = False,
) -> None:
    """Find the pictures nearest to a text or a picture; a page shows them."""
    from base.places import local_folder
    from data_pipeline.search.find import find
    from data_pipeline.search.page import check_place, write_page

    folder = local_folder(dataset)
    check_place(folder, out)
    results = find(folder, text, clip, image=image, count=count, name=embeddings, exact=exact)
    write_page(results, out)
    if json:
        emit_json(
            {
                "dataset": results.dataset,
                "query": results.query,
                "how": results.how,
                "why": results.why,
                "rows": results.rows,
                "page": str(out),
                "results": [hit.to_json() for hit in results.hits],
            }
        )
        return
    for hit in results.hits:
        typer.echo(f"{hit.score:.4f}  {hit.key}  {_one_line(hit.caption)}")
    if results.how == "exact":
        typer.echo(f"looked at all {results.rows} rows: {results.why}", err=True)
    typer.echo(f"{out}: {len(results.hits)} pictures", err=True)
    if not no_open and _has_display():
        import webbrowser

        webbrowser.open(out.resolve().as_uri())


def _has_display() -> bool:
    return sys.platform == "darwin" or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


def _one_line(caption: str) -> str:
    """The caption for a terminal: short, and without what could steer it."""
    text = "".join(letter if letter.isprintable() else " " for letter in caption[:200])
    return text[:97] + "..." if len(text) > 100 else text
