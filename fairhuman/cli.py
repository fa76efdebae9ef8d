"""The command line: `fairhuman COMMAND …`. Training itself is `deepspeed fairhuman/train.py`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fairhuman.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (2: a mistake to be mended; 1: `doctor` found one)."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except UserError as error:
        print(f"fairhuman: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fairhuman", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    data = commands.add_parser("demo-data", help="draw people as a data set")
    data.add_argument("--out", type=Path, default=Path("demo/people"))
    data.add_argument("--count", type=int, default=512)
    data.add_argument("--size", type=int, default=128, help="side in pixels")
    data.add_argument("--seed", type=int, default=0)
    data.set_defaults(run=_demo_data)

    model = commands.add_parser("demo-model", help="make a tiny SDXL and fit it to drawn people")
    model.add_argument("--data", type=Path, default=Path("demo/people"))
    model.add_argument("--out", type=Path, default=Path("demo/tiny-sdxl"))
    model.add_argument("--seed", type=int, default=0)
    model.set_defaults(run=_demo_model)

    importer = commands.add_parser("import", help="bring annotations into the data format")
    formats = importer.add_subparsers(required=True, metavar="FORMAT")
    coco = formats.add_parser("coco-wholebody", help="COCO-WholeBody's JSON")
    coco.add_argument("--annotations", type=Path, required=True)
    coco.add_argument("--images", type=Path, required=True, help="the folder of the images")
    coco.add_argument(
        "--captions", type=Path, help="COCO's captions JSON, or JSON lines: file_name, text"
    )
    coco.add_argument("--out", type=Path, required=True)
    coco.set_defaults(run=_import_coco_wholebody)

    generate = commands.add_parser("generate", help="draw pictures with a trained model")
    generate.add_argument("--model", required=True, help="OUT/final, or any SDXL")
    generate.add_argument("--prompt", action="append", required=True, help="may be repeated")
    generate.add_argument("--out", type=Path, required=True)
    generate.add_argument("--negative", default="", help="what should not be in the pictures")
    generate.add_argument("--count", type=int, default=1, help="pictures per prompt")
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--steps", type=int, default=30)
    generate.add_argument("--guidance", type=float, default=5.0)
    generate.add_argument("--size", type=int, help="side in pixels; default: the model's own")
    generate.set_defaults(run=_generate)

    doctor = commands.add_parser(
        "doctor", help="what was built, what the machine has, what each config would use"
    )
    doctor.add_argument(
        "--config", type=Path, nargs="+", help="default: those in configs/, where there are any"
    )
    doctor.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="look at a checkpoint, or at all in a run's train.output_dir, instead",
    )
    doctor.add_argument("--json", action="store_true", help="for scripts and bug reports")
    doctor.set_defaults(run=_doctor)
    return parser


def _demo_data(args: argparse.Namespace) -> None:
    from fairhuman.data.drawn import draw_people

    counts = draw_people(args.out, args.count, args.size, args.seed)
    print(
        f"{args.out}: {counts['images']} drawn people, {counts['faces']} faces, "
        f"{counts['hands']} hands; {counts['without_face']} without a face, "
        f"{counts['without_hands']} without hands"
    )


def _demo_model(args: argparse.Namespace) -> None:
    from fairhuman.models.demo import make_demo_model

    make_demo_model(args.data, args.out, args.seed)


def _import_coco_wholebody(args: argparse.Namespace) -> None:
    from fairhuman.data.importers.coco_wholebody import import_coco_wholebody

    done = import_coco_wholebody(args.annotations, args.images, args.out, args.captions)
    print(f"{args.out}: {done.images} images, {done.faces} faces, {done.hands} hands")
    if done.missing:
        print(f"{done.missing} annotated images are not in {args.images} and were left out")


def _generate(args: argparse.Namespace) -> None:
    from fairhuman.generate import generate

    paths = generate(
        args.model,
        [prompt for prompt in args.prompt for _ in range(args.count)],
        args.out,
        negative=args.negative,
        seed=args.seed,
        steps=args.steps,
        guidance=args.guidance,
        size=args.size,
    )
    print(f"{len(paths)} pictures in {args.out}")


def _doctor(args: argparse.Namespace) -> int:
    if args.checkpoint:
        return _doctor_checkpoint(args)
    from fairhuman.doctor import examine

    report = examine(args.config or sorted(Path("configs").glob("*.yaml")))
    print(json.dumps(asdict(report), indent=2) if args.json else "\n".join(report.lines()))
    return 1 if report.problems else 0


def _doctor_checkpoint(args: argparse.Namespace) -> int:
    from fairhuman.runtime import quiet

    quiet()
    from fairhuman.checkpoint_report import as_json, examine

    if args.config and len(args.config) > 1:
        raise UserError("--config: give one config at most with --checkpoint")
    found = examine(args.checkpoint, args.config[0] if args.config else None)
    print(json.dumps(as_json(found), indent=2) if args.json else "\n".join(found.lines()))
    return 0 if found.sound else 1


if __name__ == "__main__":
    sys.exit(main())
