"""Commands of what came out: measure pictures, show runs, compare ways to train."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fairhuman.common.errors import UserError
from fairhuman.common.extras import install_line


def add(commands: Any) -> None:
    """Add them to the subparsers of `fairhuman`."""
    evaluate = commands.add_parser("evaluate", help="measure a folder of pictures")
    evaluate.add_argument(
        "--images", type=Path, required=True, metavar="FOLDER", help="the pictures"
    )
    evaluate.add_argument(
        "--metrics",
        help="a list such as hands,faces,fid,kid,clip,hpsv2; default: all that can be computed",
    )
    evaluate.add_argument(
        "--reference",
        type=Path,
        metavar="FOLDER",
        help="photographs to compare with, for fid and kid",
    )
    evaluate.add_argument(
        "--inception",
        type=Path,
        metavar="FILE",
        help="the weights inception-2015-12-05.pt, for fid and kid",
    )
    evaluate.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="prompts for clip and hpsv2, one per line, in the order of the pictures' names; "
        "default: those in the pictures",
    )
    evaluate.add_argument(
        "--clip-model",
        metavar="FOLDER",
        help="a CLIP in transformers' layout, or a name in the hub's cache; default: "
        "openai/clip-vit-large-patch14",
    )
    evaluate.add_argument(
        "--hpsv2", type=Path, metavar="FILE", help="the weights HPS_v2.1_compressed.pt, for hpsv2"
    )
    evaluate.add_argument(
        "--out", type=Path, metavar="FILE", help="write the figures to this JSON file"
    )
    evaluate.add_argument("--seed", type=int, default=0, help="seed of the bootstrap and of kid")
    evaluate.add_argument(
        "--device", help="a torch device such as cuda:1; default: a GPU where there is one"
    )
    evaluate.add_argument("--batch-size", type=int, default=16, help="pictures at a time")
    evaluate.set_defaults(run=_evaluate)

    report = commands.add_parser("report", help="write the page of a run, or of runs compared")
    report.add_argument(
        "runs", type=Path, nargs="+", metavar="OUT", help="train.output_dir of a run"
    )
    report.add_argument(
        "--out", type=Path, metavar="FILE", help="the page; default for one run: OUT/report.html"
    )
    report.set_defaults(run=_report)

    study = commands.add_parser("study", help="train arms with several seeds, and compare them")
    study.add_argument(
        "--config",
        type=Path,
        required=True,
        help="a study, such as configs/study.yaml, or a training config of yours",
    )
    study.add_argument(
        "overrides", nargs="*", metavar="key=value", help="keys to set over the config's"
    )
    study.set_defaults(run=_study)


def _evaluate(args: argparse.Namespace) -> None:
    from fairhuman.common.quiet import quiet
    from fairhuman.evaluation.alignment import CLIP
    from fairhuman.evaluation.evaluate import check_out, evaluate, write_json

    if args.out:
        check_out(args.out)
    quiet()
    done = evaluate(
        args.images,
        reference=args.reference,
        prompts=args.prompts,
        metrics=None
        if args.metrics is None
        else [metric.strip() for metric in args.metrics.split(",")],
        seed=args.seed,
        device=args.device,
        batch_size=args.batch_size,
        clip_model=args.clip_model or CLIP,
        inception=args.inception,
        hpsv2_weights=args.hpsv2,
    )
    if args.out:
        write_json(done, args.out)
    print("\n".join(done.lines()))


def _report(args: argparse.Namespace) -> None:
    from fairhuman.report import write_comparison, write_report

    if len(args.runs) > 1:
        if args.out is None:
            raise UserError("report: give --out FILE for the page of several runs")
        print(f"see {write_comparison(args.runs, args.out)}")
    else:
        print(f"see {write_report(args.runs[0], args.out)}")


def _study(args: argparse.Namespace) -> int:
    try:
        from fairhuman.evaluation.study.command import study
    except ModuleNotFoundError as error:
        if error.name != "scipy":
            raise
        raise UserError(f"study: {error}; {install_line('study')}") from None
    from fairhuman.evaluation.study.own import load

    try:
        made = study(load(args.config, args.overrides))
    except KeyboardInterrupt:
        print("fairhuman: stopped; run the same command to continue", file=sys.stderr)
        return 130
    print("\n".join(["see", *(f"  {path}" for path in made)]))
    return 0
