"""``normlens run``: train a bundled model on a bundled data set, once for each choice, with a lens on."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from normlens.cli.errors import OK

__all__ = ["add_parser", "execute"]


def add_parser(commands: Any) -> None:
    """Add this command to the parser."""
    parser = commands.add_parser(
        "run", help="train a model with a lens on, one run for each norm, optimizer, ... and seed; write the report"
    )
    add = parser.add_argument
    add("--data", default="digits", help="a data set (`normlens list data`; default: digits)")
    add("--data-dir", type=Path, help="where the files of mnist and cifar are")
    add("--model", default="cnn", help="a model (`normlens list models`; default: cnn)")
    add("--norm", default="batch_norm", help="layers, separated by commas; `none` for none (`normlens list layers`)")
    add("--placement", default="pre-activation", choices=["pre-activation", "post-activation"])
    add("--probes", help="probes, separated by commas (`normlens list probes`; default: all)")
    add("--epochs", type=_positive(int), default=10)
    add("--batch-size", type=_positive(int), default=64)
    add(
        "--optimizer", default="sgd",
        help="sgd (momentum 0.9), adamw, or with transforms: bnp, adamw+bnp (`normlens list optimizers`); commas",
    )  # fmt: skip
    add("--weights", default="none", help="reparametrizations (`normlens list weights`), or `none`; commas")
    add("--schedule", default="constant", help="constant or legw, separated by commas")
    add("--augment", default="none", help="none, apr_pair or apr_single, separated by commas")
    add("--lr", type=_positive(float), default=0.05)
    add("--seeds", default="0", help="integers, separated by commas")
    add("--device", default="cpu", choices=["cpu", "cuda", "mps"])
    add("--every", type=_positive(int), help="optimizer steps between measurements (default: about 40 in all)")
    add("--probe-samples", type=_positive(int), default=256, help="training samples to measure on (default: 256)")
    add(
        "--budget", type=_positive(float), help="share of the training time for measuring, e.g. 0.1 (default: no limit)"
    )
    add("--out", type=Path, default=Path("runs/latest"), help="the folder of the runs and the report")
    add("--overwrite", action="store_true", help="replace runs of the same name")
    add("--quiet", action="store_true", help="print the path of the report alone")
    add("--json", action="store_true", help="print the table of results alone, as JSON")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Train, then write the report and print the verdicts."""
    from normlens.cli.experiment import plan
    from normlens.cli.tables import print_verdicts
    from normlens.report.html import write_report
    from normlens.report.summary import summary
    from normlens.run.store import open_run

    experiment = plan(options)
    experiment.prepare()
    if not (options.quiet or options.json):
        print(experiment.describe(), file=sys.stderr)
    files = [experiment.train(variant) for variant in experiment.variants]
    runs = {str(run.header["name"]): run for run in map(open_run, files)}
    page = write_report(runs, options.out / "report.html")
    if options.json:
        print(json.dumps({"report": str(page), "runs": json.loads(summary(runs).to_json(orient="records"))}, indent=2))
        return OK
    if not options.quiet:
        print_verdicts(runs)
    print(page)
    return OK


def _positive(kind: type[int] | type[float]) -> Any:
    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be a positive number; got {text}")
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse
