"""The command line of the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from base.command import emit_json

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(
    epilog="Examples: `unclip demo` · `unclip demo --out runs/emoji --data path/to/pairs`. "
    "Ctrl-C at any moment; the same command goes on where it was."
)
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path(
        "runs/demo"
    ),
    data: Annotated[
        Path | None,
        typer.Option(help="Your own pairs (what `unclip data prepare` takes), not the scenes."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Folder of configs; without it, configs/tiny.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """From captions to pictures: corpus, shards, CLIP, embeddings, prior, decoder, two upsamplers,
    pictures of held-out captions, scores and a report."""
    from unclip.demo.run import run_demo
    from unclip.demo.summary import summary

    report = run_demo(out, data, config)
    if json:
        emit_json(report)
    else:
        typer.echo(summary(report))
        typer.echo(f"report:   {out / 'report.html'}")
        typer.echo(f"pictures: {out / 'pictures.png'}")
