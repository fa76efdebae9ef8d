"""Commands of what came out: measure pictures, show runs, compare ways to train."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fairhuman.cli.stopped import stopped
from fairhuman.common.errors import UserError
from fairhuman.common.extras import install_line

T = TypeVar("T")
COMPARED = "compare.html"


def add(commands: Any) -> None:
    """Add them to the subparsers of `fairhuman`."""
    evaluate = commands.add_parser("evaluate", help="compute metrics of generated images")
    evaluate.add_argument(
        "--images", type=Path, required=True, metavar="FOLDER", help="the generated images"
    )
    evaluate.add_argument(
        "--metrics",
        help="a list such as hands,faces,fid,kid,clip,hpsv2; default: all that can be computed",
    )
    evaluate.add_argument(
        "--reference",
        type=Path,
        metavar="FOLDER",
        help="reference images, for fid and kid",
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
        help="prompts for clip and hpsv2, one per line, in the order of the images' names; "
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
        "--out", type=Path, metavar="FILE", help="write the metrics to this JSON file"
    )
    evaluate.add_argument("--seed", type=int, default=0, help="seed of the bootstrap and of kid")
    evaluate.add_argument(
        "--device", help="a torch device such as cuda:1; default: a GPU where there is one"
    )
    evaluate.add_argument("--batch-size", type=int, default=16, help="images per batch")
    evaluate.set_defaults(run=_evaluate)

    report = commands.add_parser("report", help="write the HTML report of a run, or compare runs")
    report.add_argument(
        "runs", type=Path, nargs="+", metavar="OUT", help="train.output_dir of a run"
    )
    report.add_argument(
        "--out", type=Path, metavar="FILE", help="the page; default for one run: OUT/report.html"
    )
    report.set_defaults(run=_report)

    compare = commands.add_parser(
        "compare", help="generate the same prompts with several exports of a run"
    )
    compare.add_argument(
        "run_folder", type=Path, metavar="OUT", help="train.output_dir of a run with exports"
    )
    compare.add_argument(
        "--steps",
        metavar="LIST",
        help="such as 500,1000,best,final; base is the model before training; default: all",
    )
    compare.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="prompts, as `generate` takes them; default: train.sample_prompts of the run",
    )
    compare.add_argument("--seeds", metavar="LIST", help="seeds for each prompt, such as 0,1,2")
    compare.add_argument("--lora-scales", metavar="LIST", help="LoRA strengths, such as 0.6,0.8,1")
    compare.add_argument("--batch-size", type=int, default=4, help="images per batch")
    compare.add_argument(
        "--out", type=Path, metavar="FILE", help="the page; default: OUT/compare.html"
    )
    compare.set_defaults(run=_compare)

    study = commands.add_parser("study", help="compare training settings over several seeds")
    study.add_argument(
        "--config",
        type=Path,
        required=True,
        help="a study, such as configs/study.yaml, or a training config of yours",
    )
    study.add_argument("overrides", nargs="*", metavar="key=value", help="config keys to override")
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


def _compare(args: argparse.Namespace) -> None:
    from fairhuman.common.quiet import quiet
    from fairhuman.config.prompt_file import read_prompt_file
    from fairhuman.evaluation.compare_steps import Asked, compare_steps

    asked = Asked(
        steps=tuple(_listed("--steps", args.steps, str)),
        prompts=tuple(read_prompt_file(args.prompts)) if args.prompts else (),
        seeds=tuple(_listed("--seeds", args.seeds, int)),
        scales=tuple(_listed("--lora-scales", args.lora_scales, float)),
        batch_size=args.batch_size,
    )
    quiet()
    print(f"see {compare_steps(args.run_folder, asked, args.out or args.run_folder / COMPARED)}")


def _listed(name: str, text: str | None, kind: Callable[[str], T]) -> list[T]:
    """Return the parts of a list such as 1,2,3."""
    try:
        return [kind(part.strip()) for part in text.split(",")] if text is not None else []
    except ValueError:
        raise UserError(f"{name} {text}: must be a list such as 0,1,2") from None


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
        return stopped("run the same command to continue")
    print("\n".join(["see", *(f"  {path}" for path in made)]))
    return 0
