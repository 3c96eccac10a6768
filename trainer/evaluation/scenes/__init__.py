"""The verifier: reads synthetic scenes back out of pictures and compares them with their captions.

Nothing here is learned and nothing sees the caption: a picture is read first and compared with
the truth afterwards.
"""

from trainer.evaluation.scenes.judge import GROUPS, MORE_GROUPS, Verdict, judge, score
from trainer.evaluation.scenes.read import Reading, ReadObject, read_scene
from trainer.evaluation.scenes.signs import ReadSign

__all__ = [
    "GROUPS",
    "MORE_GROUPS",
    "ReadObject",
    "ReadSign",
    "Reading",
    "Verdict",
    "judge",
    "read_scene",
    "score",
]
