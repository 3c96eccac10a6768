"""The synthetic corpus: captioned scenes drawn, rendered and written as users' inputs.

Every scene is a function of (seed, split, index) alone, so any part of the corpus can be made
anywhere, in any order, by any number of processes, with the same bytes.
"""

from data_pipeline.scenes.draw import Split, scene
from data_pipeline.scenes.render import jpeg, render
from data_pipeline.scenes.write import Form, write_scenes

__all__ = ["Form", "Split", "jpeg", "render", "scene", "write_scenes"]
