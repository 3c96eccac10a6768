"""Runs that begin with other weights: another run's or a file's, in every engine."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from base.errors import UserError
from trainer.checkpoint.export import export, read_weights
from trainer.checkpoint.origin import parse_origin
from trainer.checkpoint.read import SliceReader, resolve_checkpoint
from trainer.cli import app
from trainer.config import AnyTrainConfig
from trainer.loop import train


@pytest.fixture(scope="module")
def source(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints at 48 and 96 samples."""
    toy.register()
    run = tmp_path_factory.mktemp("source") / "run"
    train(toy.toy_config(dataset, run))
    return run


def begun(dataset: Path, out: Path, origin: object, **sections: Any) -> AnyTrainConfig:
    """A run of another seed that takes one step at a rate too low to be seen."""
    how = {"samples": 12, **sections.pop("train", {})}
    optim = {"lr": 1e-12, "weight_decay": 0.0, "warmup": 0}
    return toy.toy_config(
        dataset, out, seed=8, init_from=str(origin), optim=optim, train=how, **sections
    )


ENGINES: list[dict[str, Any]] = [
    {"engine": "local"},
    {"engine": "local", "precision": "bf16"},
    *({"engine": "deepspeed", "zero_stage": zero} for zero in range(4)),
]


@pytest.mark.parametrize("how", ENGINES, ids=lambda how: "-".join(map(str, how.values())))
def test_the_weights_are_those_of_the_origin(
    deepspeed_ready: None, dataset: Path, source: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    train(begun(dataset, tmp_path / "run", source, train=how))
    expected = read_weights(source, "ema")
    assert not torch.equal(expected["net.0.weight"], read_weights(source, "raw")["net.0.weight"])
    for which in ("raw", "ema"):
        found = read_weights(tmp_path / "run", which)  # type: ignore[arg-type]
        assert found.keys() == expected.keys()
        for name, value in found.items():
            assert torch.allclose(value.float(), expected[name], rtol=0, atol=1e-9), name
    checkpoint = resolve_checkpoint(tmp_path / "run")
    assert (checkpoint.state().steps, checkpoint.state().ema_updates) == (1, 1)


def test_a_checkpoint_and_kind_of_weights_may_be_named(
    dataset: Path, source: Path, tmp_path: Path
) -> None:
    for which in ("raw", "ema"):
        train(begun(dataset, tmp_path / which, f"{source}@48:{which}"))
        facts = resolve_checkpoint(tmp_path / which).manifest.facts
        assert facts["init_from"] == facts["begun_with"]["weights"] == f"{source}@48:{which}"
        for name, value in read_weights(source, which, 48).items():  # type: ignore[arg-type]
            assert torch.allclose(value, read_weights(tmp_path / which, "raw")[name], atol=1e-9)


def test_a_file_gives_the_same_run_as_the_run_it_came_from(
    dataset: Path, source: Path, tmp_path: Path
) -> None:
    """Bit for bit; moments begin at nothing, so only weights can have come along."""
    file = export(source, "ema", tmp_path / "weights.safetensors")
    for out, origin in (("a", source), ("b", file)):
        train(toy.toy_config(dataset, tmp_path / out, init_from=str(origin)))
    ours, theirs = (resolve_checkpoint(tmp_path / out) for out in "ab")
    for kind in ours.manifest.kinds:
        for name in ours.manifest.tensors:
            one = SliceReader(ours).whole(kind, name)
            assert torch.equal(one, SliceReader(theirs).whole(kind, name)), (kind, name)


def test_half_precision_files_are_taken(dataset: Path, source: Path, tmp_path: Path) -> None:
    file = export(source, "ema", tmp_path / "weights.safetensors")
    halved = tmp_path / "half.safetensors"
    save_file({name: value.half() for name, value in load_file(file).items()}, halved)
    train(begun(dataset, tmp_path / "run", halved))
    for name, value in read_weights(tmp_path / "run", "raw").items():
        assert torch.allclose(value, load_file(file)[name].half().float(), atol=1e-9), name


def test_on_resume_the_same_is_ignored_and_another_refused(
    dataset: Path, source: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    moved = shutil.copytree(source, tmp_path / "moved")
    first = toy.toy_config(dataset, run, init_from=str(moved), train={"samples": 48})
    train(first)
    begun_with = resolve_checkpoint(run).manifest.facts["begun_with"]
    assert begun_with["weights"] == f"{moved}@96:ema"
    shutil.rmtree(moved)  # nobody looks for it again
    with pytest.raises(UserError, match=r"^init_from: got .*source.*begun with .*moved:ema"):
        train(toy.toy_config(dataset, run, init_from=str(source)))
    with pytest.raises(UserError, match=r"^init_from: got .*moved:raw"):
        train(toy.toy_config(dataset, run, init_from=f"{moved}:raw"))
    assert train(toy.toy_config(dataset, run, init_from=str(moved), train={"samples": 72})).steps
    assert train(toy.toy_config(dataset, run)).resumed_from == 72
    assert resolve_checkpoint(run).manifest.facts["begun_with"] == begun_with
    with pytest.raises(UserError, match=r"^init_from: "):  # also of a run that is complete
        train(toy.toy_config(dataset, run, init_from=str(source)))
    plain = tmp_path / "plain"
    train(toy.toy_config(dataset, plain, train={"samples": 48}))
    with pytest.raises(UserError, match="was begun with random weights"):
        train(toy.toy_config(dataset, plain, init_from=str(source)))


def test_what_does_not_fit_is_named(dataset: Path, source: Path, tmp_path: Path) -> None:
    weights = read_weights(source, "ema")

    def refusal(origin: object, **sections: Any) -> str:
        with pytest.raises(UserError) as caught:
            train(begun(dataset, tmp_path / "run", origin, **sections))
        assert not (tmp_path / "run" / "checkpoints").exists()
        return str(caught.value)

    assert "net.0.bias: got [24], expected [25]" in refusal(source, model={"width": 25})
    file = tmp_path / "w.safetensors"
    save_file({**weights, "more": torch.zeros(2)}, file)
    assert refusal(file) == f"init_from: {file}: more: got [2], expected no such tensor"
    del weights["scale"]  # a buffer, which belongs to a model as its weights do
    save_file(weights, file)
    assert refusal(file) == f"init_from: {file}: scale: got no such tensor, expected []"
    file.write_bytes(b"PK\x03\x04 a pickle, say")
    assert "is no safetensors file" in refusal(file)
    assert "no such RUN or safetensors file" in refusal(tmp_path / "nothing")
    assert "no checkpoint at 5 samples; there are: 48, 96" in refusal(f"{source}@5")
    assert "a file has one set of weights" in refusal(f"{file}:raw")
    assert "got ''" in refusal("")


def test_damaged_weights_are_refused(dataset: Path, source: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(source, tmp_path / "broken")
    path = broken / "checkpoints/000000000096/slices/rank_00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"^init_from: .*rank_00000.*bytes have changed"):
        train(begun(dataset, tmp_path / "run", broken))


def test_the_command_takes_it(dataset: Path, source: Path, tmp_path: Path) -> None:
    how = {"samples": 12, "checkpoint_every": None}
    config = toy.write_toy_config(tmp_path / "toy.yaml", dataset, tmp_path / "run", train=how)
    arguments = ["train", str(config), "--init-from", f"{source}@48:raw"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    facts = resolve_checkpoint(tmp_path / "run").manifest.facts
    assert facts["init_from"] == f"{source}@48:raw"


def test_names_are_taken_apart_from_the_right() -> None:
    origin = parse_origin("/runs/a@b:c@7@1024:raw")
    assert origin == (Path("/runs/a@b:c@7"), 1024, "raw")
    assert str(origin) == "/runs/a@b:c@7@1024:raw"
    assert parse_origin("runs/x") == (Path.cwd() / "runs/x", None, "ema")
    assert str(parse_origin("x.safetensors")) == str(Path.cwd() / "x.safetensors")
