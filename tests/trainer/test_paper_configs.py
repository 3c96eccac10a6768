"""The configs of paper, Karlo and one GPU: their sizes; of the first two a step at an eighth."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from base.clip_reference import CONFIG_NAME, WEIGHTS_NAMES
from base.errors import UserError
from trainer.batch import Batch, Needs
from trainer.config import AnyTrainConfig
from trainer.engine.open import open_engine
from trainer.loop import build_parts
from trainer.models.clip import (
    Clip,
    ClipConfig,
    TextConfig,
    VisionConfig,
    describe_for_open_clip,
    weights_for_open_clip,
)
from trainer.planning.outline import outline
from trainer.session import Session
from trainer.stages import load_train_config
from unclip.demo.config import config_folder, load_demo_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CPU = torch.device("cpu")
pytestmark = pytest.mark.slow

PARAMETERS = {
    "paper/clip": 986_339_841,
    "paper/prior": 1_225_559_040,  # the paper's "1B"
    "paper/ar_prior": 805_871_232,  # "1B"; without the table's text encoder
    "paper/decoder": 3_567_897_094,  # "3.5B"
    "paper/up256": 729_702_083,  # "700M"
    "paper/up1024": 282_059_139,  # "300M"
    "karlo/prior": 1_022_030_080 - 2 * 768,  # Karlo counts mean and deviation among them
    "karlo/decoder": 885_439_686 + 7_878_400,
    "karlo/up256": 691_579_523,
    "karlo/up256_last": 691_579_523,
    "small/clip": 22_797_361,
    "small/prior": 50_738_176,
    "small/decoder": 51_226_115,
    "small/up64": 16_650_339,
    "small/up256": 23_189_964,
}


def config_of(name: str, *more: str) -> AnyTrainConfig:
    return load_train_config(CONFIGS / f"{name}.yaml", more)


def test_all_are_here() -> None:
    found = {
        f"{path.parent.name}/{path.stem}"
        for folder in ("paper", "karlo", "small")
        for path in (CONFIGS / folder).glob("*.yaml")
    }
    assert found == {*PARAMETERS, "small/demo"}


@pytest.mark.parametrize("name", PARAMETERS)
def test_their_parameters_are_the_published_ones(name: str) -> None:
    """As `unclip plan` builds and counts them, on the meta device."""
    config = config_of(name)
    model = outline(config, "fp32").model
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert config.out == Path("runs") / name


def test_the_demo_takes_those_of_one_gpu() -> None:
    folder = config_folder(CONFIGS / "small")
    assert load_demo_config(folder).corpus.train == 120_000
    sides = [
        (objective.image_size // objective.factor, objective.image_size)
        for objective in (config_of(f"small/{name}").objective for name in ("up64", "up256"))
    ]
    assert [config_of("small/decoder").objective.image_size, 64] == [side for side, _ in sides]
    assert [side for _, side in sides] == [64, 256]


EIGHTH = [  # of channels, widths and heads, for one step; depths and pictures stay
    "train.engine=local",
    "train.precision=fp32",
    "train.samples=64",
    "train.batch=2",
    "train.micro_batch=null",
    "train.async_save=false",
    "optim.lr=1e-3",
    "optim.warmup=0",
    "optim.weight_decay=0",
]
DIMS = ["model.embedding_dim=1024", "model.text_width=128"]  # of the CLIP below
READER = "{context_length: 256, width: 256, layers: 24, heads: 4}"
KARLO = ["model.unet.channels=40", "model.unet.norm_groups=4"]
SMALLER = {
    "paper/clip": [
        "model.vision={image_size: 256, patch_size: 16, width: 160, layers: 32, head_width: 80}",
        "model.text={context_length: 77, width: 128, layers: 24, heads: 2}",
    ],
    "paper/prior": [*DIMS, "model.heads=4"],
    "paper/ar_prior": [*DIMS, "model.heads=3"],
    "paper/decoder": [
        *DIMS,
        f"model.text={READER}",
        "model.unet.channels=64",
        "model.unet.context_width=256",
        "objective.drop_image=0.5",
    ],
    "paper/up256": ["model.unet.channels=40"],
    "paper/up1024": ["model.unet.channels=24"],
    "karlo/prior": [*DIMS, "model.heads=4"],
    "karlo/decoder": [
        *DIMS,
        *KARLO,
        "model.unet.context_width=192",
        "model.unet.head_width=8",
        "objective.drop_image=0.5",
    ],
    "karlo/up256": KARLO,
    "karlo/up256_last": [*KARLO, "init_from=null"],
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that open_clip loads: random weights, states an eighth as wide as the paper's."""
    folder = tmp_path_factory.mktemp("clip")
    config = ClipConfig(1024, VisionConfig(32, 64, 1), TextConfig(128, layers=1, heads=2))
    (folder / CONFIG_NAME).write_text(json.dumps(describe_for_open_clip(config)))
    save_file(weights_for_open_clip(Clip(config).state_dict()), folder / WEIGHTS_NAMES[0])
    return folder


def batch_of(needs: Needs) -> Batch:
    side = needs.crop or needs.image_size
    tokens = torch.zeros(2, needs.context_length, dtype=torch.int64)
    tokens[:, :4] = torch.tensor([[49406, 320, 736, 49407], [49406, 1901, 49407, 0]])
    rows = torch.nn.functional.normalize(torch.randn(2, 2, 1024), dim=-1)
    return Batch(
        torch.tensor([2, 3]),  # half of which lose z_i and the caption where that is 0.5
        None if side is None else torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8),
        tokens if needs.tokens else None,
        *(rows if needs.embeddings else (None, None)),
    )


def begun(model: nn.Module) -> dict[str, Tensor]:
    """Weights before a step none of whose branches is zero, as a fresh network's are."""
    for value in model.parameters():
        if not value.any():
            nn.init.normal_(value, std=0.02)
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("name", SMALLER)
def test_a_real_step_at_an_eighth_of_the_width(name: str, clip: Path, tmp_path: Path) -> None:
    """As deep as they are, on their pictures and crops, by the way that their configs say."""
    more = [*EIGHTH, *SMALLER[name], f"out={tmp_path / 'run'}", f"clip={clip}"]
    config = config_of(name, *more)
    torch.manual_seed(0)
    parts = build_parts(config, CPU)
    before = begun(parts.model)
    engine = open_engine(parts.model, config.optim, config.train, CPU)
    session = Session(config, parts.objective, engine, {}, epoch_size=64)
    stats = session.step([batch_of(parts.objective.needs)], 1e-3, [0.0, 0.0])
    assert stats.applied
    after = dict(engine.module.named_parameters())
    assert {name for name, value in before.items() if torch.equal(after[name], value)} == set()
    assert all(value.isfinite().all() for value in after.values())


def test_a_reader_shorter_than_clips_captions_is_refused(clip: Path) -> None:
    reader = READER.replace("256", "60", 1)
    more = [f"clip={clip}", *DIMS, f"model.text={reader}"]
    config = load_train_config(CONFIGS / "micro/decoder.yaml", more)
    with pytest.raises(UserError, match=r"model\.text\.context_length: got 60, expected at least"):
        build_parts(config, CPU)
