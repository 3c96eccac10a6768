"""`unclip checkpoint …`: what a RUN keeps; torch when needed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from base.command import emit_json
from base.errors import UserError
from trainer.interop.cli import IMPORT_EXAMPLES, export_diffusers, import_checkpoint

app = typer.Typer(
    help="List, show, verify, prune and export the checkpoints of a RUN; import others' weights.",
    no_args_is_help=True,
)

Run = Annotated[Path, typer.Argument(help="The RUN folder: `out` of the config.")]
At = Annotated[
    int | None, typer.Option("--at", help="Samples seen; without it, the latest checkpoint.")
]
Replace = Annotated[bool, typer.Option("--replace", help="Write over a file that is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


@app.command("list", epilog="Example: `unclip checkpoint list runs/prior`")
def list_checkpoints(run: Run, json: Json = False) -> None:
    """The checkpoints of a RUN, oldest first."""
    from trainer.checkpoint.folders import checkpoint_folders, latest_checkpoint, latest_fault

    _require_run(run)
    fault = latest_fault(run)
    latest = None if fault else latest_checkpoint(run)
    rows = [{**_row(path), "latest": path == latest} for path in checkpoint_folders(run)]
    if rows and fault:
        typer.echo(f"warning: {fault}; the next `unclip train` mends it", err=True)
    if json:
        emit_json({"run": str(run), "checkpoints": rows})
        return
    for row in rows:
        mark = "  (latest)" if row["latest"] else ""
        if row["damaged"] is not None:
            typer.echo(f"{row['name']}  damaged: {row['damaged']}{mark}")
            continue
        typer.echo(
            f"{row['name']}  {row['steps']} steps  {row['ranks']} ranks  "
            f"{row['bytes'] / 1e6:.1f} MB{mark}"
        )
    if not rows:
        typer.echo("no checkpoint yet")


@app.command(epilog="Example: `unclip checkpoint show runs/prior --at 102400`")
def show(run: Run, at: At = None, json: Json = False) -> None:
    """What one checkpoint holds: progress, tensors, files, fingerprints."""
    from trainer.checkpoint.read import resolve_checkpoint

    _require_run(run)
    checkpoint = resolve_checkpoint(run, at)
    manifest = checkpoint.manifest
    state = checkpoint.state().to_json()
    data: dict[str, Any] = {**manifest.to_json(), "folder": str(checkpoint.folder), "state": state}
    if json:
        emit_json(data)
        return
    elements = sum(record.count for record in manifest.tensors.values())
    skipped = sum(end - start for start, end in state["skipped"])
    typer.echo(f"folder      {checkpoint.folder}")
    typer.echo(f"stage       {manifest.facts.get('stage')}")
    typer.echo(f"progress    {manifest.samples} samples, {manifest.steps} steps, {skipped} skipped")
    typer.echo(f"averaged    {state['ema_updates']} updates")
    typer.echo(f"parameters  {elements:,} in {len(manifest.tensors)} tensors")
    typer.echo(f"kinds       {', '.join(manifest.kinds)}")
    typer.echo(f"files       {len(manifest.files)} by {manifest.world_size} ranks")


@app.command(epilog="Example: `unclip checkpoint verify runs/prior`")
def verify(run: Run, at: At = None, json: Json = False) -> None:
    """Compare every byte of checkpoints with their manifests; all of them without --at.

    So are the snapshots of averages. A `latest` that names none of the checkpoints is a fault too.
    """
    from trainer.checkpoint.folders import checkpoint_folders, latest_fault
    from trainer.checkpoint.manifest import LATEST
    from trainer.checkpoint.read import folder_faults, resolve_checkpoint
    from trainer.checkpoint.snapshots import SNAPSHOTS, snapshot_folders

    _require_run(run)
    chosen = checkpoint_folders(run) if at is None else [resolve_checkpoint(run, at).folder]
    snapshots = snapshot_folders(run) if at is None else []
    found = {folder.name: folder_faults(folder) for folder in chosen}
    found |= {f"{SNAPSHOTS}/{folder.name}": folder_faults(folder) for folder in snapshots}
    expected = bool(chosen) or (run / LATEST).exists()
    if expected and (fault := latest_fault(run)) is not None:
        found[LATEST] = [fault]
    if json:
        emit_json({"run": str(run), "checked": len(chosen) + len(snapshots), "faults": found})
    bad = [fault for faults_of in found.values() for fault in faults_of]
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise UserError(f"{bad[0]}{more}")
    if not json and not chosen:
        typer.echo("no checkpoint yet")
    elif not json:
        beside = f", and {len(snapshots)} snapshots of averages" if snapshots else ""
        typer.echo(f"{len(chosen)} checkpoints are whole{beside}")


@app.command(
    epilog="Examples: `unclip checkpoint prune runs/prior --dry-run` · "
    "`unclip checkpoint prune runs/prior --keep 1 --every 1000000`"
)
def prune(
    run: Run,
    keep: Annotated[int | None, typer.Option(min=1, help="The last so many stay.")] = None,
    every: Annotated[
        int | None, typer.Option(min=1, help="The first after each multiple of samples stays.")
    ] = None,
    best: Annotated[
        int | None, typer.Option(min=0, help="So many with the lowest loss stay.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell, and delete nothing.")] = False,
    json: Json = False,
) -> None:
    """Delete the checkpoints that no rule keeps; what is not given is as the RUN's config says.

    Not while the run is going on, and only when what `latest` names is whole.
    """
    from trainer.checkpoint.retention import Retention, prune_by_hand
    from trainer.stages import load_train_config

    _require_run(run)
    train = load_train_config(run / "config.yaml").train
    rules = Retention(
        train.keep if keep is None else keep,
        train.keep_every if every is None else every,
        train.keep_best if best is None else best,
    )
    pruned = prune_by_hand(run, rules, dry_run)
    if json:
        emit_json(pruned)
        return
    for name, size in pruned.removed.items():
        typer.echo(f"{name}  {size / 1e6:.1f} MB")
    done = "would go, which frees" if dry_run else "are gone, which freed"
    freed = sum(pruned.removed.values())
    typer.echo(f"{len(pruned.removed)} checkpoints {done} {freed / 1e6:.1f} MB")
    typer.echo(f"{len(pruned.kept)} stay: {', '.join(pruned.kept)}")


@app.command(
    epilog="Examples: `unclip checkpoint export runs/prior prior.safetensors --weights ema` · "
    "`unclip checkpoint export runs/karlo --format diffusers --out karlo-ours`"
)
def export(
    run: Annotated[
        Path,
        typer.Argument(help="A RUN; for diffusers also a cascade.yaml, or the folder with one."),
    ],
    file: Annotated[Path | None, typer.Argument(help="The file or folder to write.")] = None,
    out: Annotated[Path | None, typer.Option(help="The same, by name.")] = None,
    form: Annotated[
        str,
        typer.Option("--format", help="`safetensors`, one file; `diffusers`, a folder of theirs."),
    ] = "safetensors",
    weights: Annotated[
        str | None,
        typer.Option(
            help="`ema` or `ema_0.050` and the like: averaged; `raw`: as trained. Without it "
            "`ema`, of a cascade what it names."
        ),
    ] = None,
    at: At = None,
    replace: Replace = False,
    json: Json = False,
) -> None:
    """Write a RUN's weights as one safetensors file; a cascade or a RUN as diffusers has it."""
    target = _one_target(file, out)
    if form == "diffusers":
        if replace:
            raise UserError("--replace: is for files; remove the folder, or choose another --out")
        export_diffusers(run, target, weights, at, json)
        return
    if form != "safetensors":
        raise UserError(f"--format: got {form!r}, expected safetensors or diffusers")
    from trainer.checkpoint.export import export as write_export

    _require_run(run)
    kind = weights or "ema"
    write_export(run, kind, target, at, replace)
    if json:
        emit_json({"out": str(target), "bytes": target.stat().st_size, "weights": kind})
    else:
        typer.echo(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


def _one_target(file: Path | None, out: Path | None) -> Path:
    if (file is None) == (out is None):
        raise UserError("where to write: expected one file or folder, as the last word or as --out")
    return file or out or Path()


app.command("import", epilog=IMPORT_EXAMPLES)(import_checkpoint)


@app.command(
    epilog="Example: `unclip checkpoint ema runs/prior --std 0.07 --out prior.safetensors`"
)
def ema(
    run: Run,
    std: Annotated[
        float, typer.Option(help="The average's width relative to the run (EDM2's sigma_rel).")
    ],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    at: Annotated[
        int | None, typer.Option("--at", help="Samples of a snapshot; without it, the last one.")
    ] = None,
    replace: Replace = False,
    json: Json = False,
) -> None:
    """Write an average that was not kept while training, made of a RUN's snapshots of others."""
    from trainer.checkpoint.synthesis import synthesise

    _require_run(run)
    made = synthesise(run, std, out, at, replace)
    if json:
        emit_json({**made._asdict(), "out": str(out), "bytes": out.stat().st_size})
    else:
        typer.echo(
            f"{out}: {out.stat().st_size / 1e6:.1f} MB, {made.averages} averages up to "
            f"{made.samples} samples, error {made.error:.2%}"
        )


@app.command(
    epilog="Examples: `unclip checkpoint analytic runs/prior` · "
    "`unclip checkpoint analytic runs/prior --samples 4096 --weights raw`"
)
def analytic(
    run: Run,
    samples: Annotated[int, typer.Option(min=1, help="Of the run's data, the first.")] = 1024,
    steps: Annotated[
        int, typer.Option(min=2, help="Timesteps measured; others lie on lines between them.")
    ] = 64,
    weights: Annotated[
        str, typer.Option(help="`ema`, `raw` and the like: those that will be sampled.")
    ] = "ema",
    at: At = None,
    json: Json = False,
) -> None:
    """Measure what a cascade's `sampler: analytic` needs of a RUN, over its data; kept in it."""
    from trainer.sampling.analytic import RECORD, measure_scores

    _require_run(run)
    found = measure_scores(run, samples, steps, weights, at)
    if json:
        emit_json({"out": str(run / RECORD), **asdict(found)})
    else:
        typer.echo(f"{run / RECORD}: {len(found.gamma)} timesteps, {found.samples} samples")


def _row(folder: Path) -> dict[str, Any]:
    """What a list of checkpoints tells of one: by its manifest, and by the sizes of its files."""
    from trainer.checkpoint.read import open_checkpoint, size_fault

    try:
        manifest = open_checkpoint(folder).manifest
    except UserError as error:
        return {"name": folder.name, "damaged": str(error)}
    sizes = (size_fault(folder / name, record) for name, record in manifest.files.items())
    if (fault := next(filter(None, sizes), None)) is not None:
        return {"name": folder.name, "damaged": fault}
    return {
        "name": folder.name,
        "damaged": None,
        "samples": manifest.samples,
        "steps": manifest.steps,
        "ranks": manifest.world_size,
        "loss": manifest.loss,
        "bytes": manifest.bytes,
    }


def _require_run(run: Path) -> None:
    if not run.is_dir():
        raise UserError(f"{run}: no such RUN folder")
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: is no RUN, it has no config.yaml")
