"""clip-retrieval's inference with a CLIP of a folder: runs in the peers' environment.

`.venv-peers/bin/python benchmarks/peers/clip_inference.py NAME CLIP_FOLDER TARS OUT`
"""

import sys
from pathlib import Path

import open_clip
from clip_retrieval.clip_inference.main import main

if __name__ == "__main__":
    name, folder, tars, out = sys.argv[1:]
    open_clip.add_model_config(Path(folder))  # reads NAME.json
    weights = Path(folder).absolute() / "open_clip_model.safetensors"
    main(
        input_dataset=tars,
        output_folder=out,
        input_format="webdataset",
        batch_size=256,
        num_prepro_workers=2,
        output_partition_count=1,
        enable_metadata=True,
        clip_model=f"open_clip:{name}/{weights}",
    )
