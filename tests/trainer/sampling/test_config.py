"""cascade.yaml: what does not go together is refused in one line."""

from pathlib import Path

import pytest

from base.errors import UserError
from trainer.sampling.config import CascadeConfig, load_cascade_config


def load(folder: Path, prior: str = "", decoder: str = "", up: str = "") -> CascadeConfig:
    text = "clip: clip\n"
    text += f"prior: {{run: prior{prior}}}\ndecoder: {{run: decoder{decoder}}}\n"
    (folder / "cascade.yaml").write_text(f"{text}upsamplers: [{{run: up{up}}}]\n")
    return load_cascade_config(folder)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "dpm++", "heun", "analytic"])
def test_every_part_may_have_any_sampler(sampler: str, tmp_path: Path) -> None:
    config = load(tmp_path, *[f", sampler: {sampler}"] * 3)
    parts = [config.prior, config.decoder, *config.upsamplers]
    assert [part.sampler for part in parts] == [sampler] * 3


def test_guidance_has_its_options(tmp_path: Path) -> None:
    more = ", guidance: 3, guidance_interval: [0.2, 5], guidance_rescale: 0.7"
    config = load(tmp_path, more, more)
    for part in (config.prior, config.decoder):
        assert (part.guidance, part.guidance_rescale) == (3, 0.7)
        assert part.guidance_interval == (0.2, 5)


@pytest.mark.parametrize(
    ("where", "values", "message"),
    [
        ("decoder", "sampler: heun, eta: 0.5", r"eta: got 0\.5 with sampler heun: only ddim"),
        ("up", "sampler: dpm++, eta: 1.0", "eta: got 1.0 with sampler dpm"),
        ("decoder", "sampler: dpm", "sampler: got 'dpm'"),
        ("decoder", "guidance_interval: [5, 0.2]", r"got \[5\.0, 0\.2\], expected \[LOW, HIGH\]"),
        ("decoder", "guidance_interval: [1]", "guidance_interval"),
        ("decoder", "guidance_rescale: 1.5", "guidance_rescale: got 1.5"),
        ("prior", "guidance_interval: [0, 5]", "guidance_interval: guidance is 1"),
        ("prior", "guidance_rescale: 0.5", "guidance_rescale: guidance is 1"),
        ("up", "guidance_rescale: 0.5", "guidance_rescale: unknown key"),
    ],
)
def test_what_does_not_go_together(where: str, values: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, **{where: f", {values}"})
    assert "\n" not in str(caught.value)
