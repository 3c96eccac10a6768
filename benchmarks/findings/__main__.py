"""The paper's comparisons on a finished demo: `python -m benchmarks.findings runs/demo`.

Trains what they need beside the demo's networks, draws held-out captions with the same noise under
every setting, and prints tables. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from base.errors import UserError
from base.files import write_atomic, write_json
from benchmarks.findings.comparisons import conditioning, draw_all, guidance, reranking
from benchmarks.findings.drawings import Studio
from benchmarks.findings.enlarging import upsamplers
from benchmarks.findings.extras import EXTRAS, train_extras
from benchmarks.findings.plan import Counts, Plan
from benchmarks.findings.sheets import write_plot, write_sheets
from benchmarks.findings.tables import Table
from trainer.evaluation.pairs import Pairs, balanced, distinct, read_pairs

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "tiny"


def heldout(demo: Path, count: int) -> Pairs:
    """Up to `count` held-out pairs, no caption twice; of scenes as many of one object as of two.

    Raises:
        UserError: the folder holds no demo whose networks are trained.
    """
    if not (demo / "cascade.yaml").is_file():
        raise UserError(f"{demo}: has no cascade.yaml; train its networks by `unclip demo` first")
    pairs = distinct(read_pairs(demo / "data" / "heldout"))
    if pairs.truths is None:
        return pairs.take(range(min(count, len(pairs))))
    return balanced(pairs, count // 2, count // 2)


def find(demo: Path, out: Path, configs: Path, counts: Counts, extras: tuple[str, ...]) -> str:
    """Train, draw and measure what is missing; the tables as a page."""
    pairs = heldout(demo, counts.captions)
    train_extras(demo, out, configs, extras)
    studio = Studio(demo, out, pairs)
    plan = Plan(studio.usual, counts.within(len(pairs)), extras)
    draw_all(studio, plan)
    parts: dict[str, list[Table]] = {}
    for name, compare in _COMPARISONS.items():
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        parts[name] = list(compare(studio, plan))
    write_sheets(studio, plan)
    write_plot(parts["guidance"], out / "guidance-plot.png")
    tables = [table for part in parts.values() for table in part]
    write_json(out / "findings.json", [table.to_json() for table in tables])
    page = "\n".join(table.markdown() for table in tables)
    write_atomic(out / "findings.md", page)
    return page


_COMPARISONS = {
    "conditions": conditioning,
    "guidance": guidance,
    "re-ranking": reranking,
    "upsamplers": upsamplers,
}


def main() -> int:
    """Print the tables; 2 for a user's mistake."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="folder of a finished `unclip demo`")
    parser.add_argument("--out", type=Path, default=None, help="default: DEMO/findings")
    parser.add_argument("--configs", type=Path, default=CONFIGS, help="those of the demo")
    parser.add_argument("--captions", type=int, default=Counts().captions)
    parser.add_argument("--swept", type=int, default=Counts().swept, help="captions a scale")
    parser.add_argument("--varied", type=int, default=Counts().varied, help="captions with 4 each")
    parser.add_argument(
        "--extras",
        nargs="*",
        default=[extra.name for extra in EXTRAS],
        help="the networks to train; comparisons that need others are left out",
    )
    options = parser.parse_args()
    counts = Counts(options.captions, options.swept, options.varied)
    out = options.out or options.demo / "findings"
    try:
        print(find(options.demo, out, options.configs, counts, tuple(options.extras)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
