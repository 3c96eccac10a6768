"""One rank of several of `evaluate` with random weights: evaluation_ranks.py CASCADE DATA OUT."""

import sys
from pathlib import Path

import torch
from small_cascade import cascade

import trainer.evaluation.drawn as drawn
from trainer.evaluation.run import Evaluation, evaluate

if __name__ == "__main__":
    torch.set_num_threads(1)
    drawn.load_cascade = lambda _: cascade()  # type: ignore[assignment]
    asked = Evaluation(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), batch=3, repeats=2)
    evaluate(asked)
