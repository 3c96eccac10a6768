"""`unclip evaluate`; what needs torch is imported when it is used."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from base.command import emit_json
from base.errors import UserError

EPILOG = (
    "Examples: `unclip evaluate runs/demo --data runs/demo/data/heldout --out evaluation` · "
    "`unclip evaluate runs/demo --data runs/demo/data/heldout --guidance 1,1.5,2,4 --out sweep` · "
    "`unclip evaluate big --data coco --count 30000 --inception "
    "pt_inception-2015-12-05-6726825d.pth --set decoder.guidance=1.25`. "
    "Ctrl-C at any moment; the same command goes on where it was."
)


def evaluate(
    cascade: Annotated[Path, typer.Argument(help="A cascade.yaml, or the folder that holds it.")],
    data: Annotated[
        str, typer.Option(help="A DATASET with embeddings, of pairs that training did not see.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for pictures and report.")] = Path("evaluation"),
    count: Annotated[
        int | None,
        typer.Option(min=1, help="Distinct captions; without it all, at most 1000."),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**64 - 1, help="Every seed gives other pictures.")
    ] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Pictures drawn together.")] = 16,
    guidance: Annotated[
        str | None,
        typer.Option(metavar="G,G,…", help="The decoder's, one after another; else its own."),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="CLIP",
            help="Judges pictures in place of the cascade's own CLIP: a RUN, an open_clip folder, "
            "or MODEL:WEIGHTS_FILE.",
        ),
    ] = None,
    inception: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Inception v3's published weights (inception-2015-12-05), for FID and IS.",
        ),
    ] = None,
    embeddings: Annotated[
        str | None, typer.Option(metavar="NAME", help="A further set of the DATASET's embeddings.")
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Pictures of each of 16 captions, for diversity; 1: none.")
    ] = 4,
    measured: Annotated[
        int, typer.Option(min=1, help="Pairs that the prior is measured on.")
    ] = 256,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="A value over cascade.yaml's: a.b=c.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Measure a cascade on pairs that it has not seen: FID, precision and recall, CLIP score,
    Inception Score, diversity, scenes, prior, upsamplers; report.html and report.json.

    Alone, under torchrun or under srun. Pictures that are there already are not drawn again.
    """
    wanted = () if guidance is None else _numbers(guidance)
    from trainer.evaluation.report import PAGE, summary
    from trainer.evaluation.run import Evaluation
    from trainer.evaluation.run import evaluate as run_evaluation

    asked = Evaluation(
        *(cascade, data, out, count, seed, batch, wanted, features, inception),
        *(embeddings, repeats, measured, tuple(override or ())),
    )
    report = run_evaluation(asked)
    if report is None:  # the first process tells
        return
    if json:
        emit_json(report)
        return
    typer.echo(summary(report))
    typer.echo(f"report: {out / PAGE}")


def _numbers(text: str) -> tuple[float, ...]:
    """Each once, in their order.

    Raises:
        UserError: one is no number, or below 0.
    """
    try:
        found = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        found = (math.nan,)
    if not all(0 <= value < math.inf for value in found):
        raise UserError(f"--guidance: got {text!r}, expected numbers of at least 0 such as 1,1.5,2")
    return found
