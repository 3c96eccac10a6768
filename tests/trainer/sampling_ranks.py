"""One rank of several of `generate text` with random weights: sampling_ranks.py CASCADE OUT."""

import sys
from pathlib import Path

from small_cascade import CAPTIONS, cascade

import trainer.sampling.requests as requests
from trainer.sampling.asked import of_text

if __name__ == "__main__":
    requests.load_cascade = lambda _: cascade()  # type: ignore[assignment]
    requests.fulfil(of_text(CAPTIONS, 3), Path(sys.argv[1]), Path(sys.argv[2]), 2)
