"""The command line: `fairhuman COMMAND …`. Training itself is `deepspeed fairhuman/train.py`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairhuman.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    2: a mistake to be mended; 1: `doctor` or `inspect --strict` found one.
    """
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
    openpose = _format(formats, "openpose", "OpenPose's or DWPose's keypoint JSON")
    openpose.add_argument("--keypoints", type=Path, required=True, help="the folder of STEM.json")
    openpose.add_argument("--confidence", type=float, default=0.3, help="least, of a keypoint")
    openpose.set_defaults(run=_import_openpose)
    yolo = _format(formats, "yolo", "YOLO's label files")
    yolo.add_argument("--labels", type=Path, required=True, help="the folder of STEM.txt")
    for region in ("face", "hand"):
        yolo.add_argument(
            f"--{region}-class", type=int, action="append", default=[], help="may be repeated"
        )
    yolo.set_defaults(run=_import_yolo)
    masks = _format(formats, "masks", "mask images named like their images")
    for region in ("face", "hand"):
        masks.add_argument(f"--{region}-masks", type=Path, help="their folder; white = region")
    masks.add_argument("--invert", action="store_true", help="black = region")
    masks.set_defaults(run=_import_masks)

    exporter = commands.add_parser("export-annotations", help="write annotations as COCO's JSON")
    exporter.add_argument("folder", type=Path, help="a data set")
    exporter.add_argument("--out", type=Path, required=True, help="the JSON file")
    exporter.set_defaults(run=_export_annotations)

    annotate = commands.add_parser("annotate", help="find faces and hands in a folder of images")
    annotate.add_argument("folder", type=Path)
    annotate.add_argument(
        "--detector", default="mediapipe", help="mediapipe (default), yolo, or yours: module:Class"
    )
    annotate.add_argument("--threshold", type=float, default=0.5, help="least confidence")
    annotate.add_argument("--face-weights", type=Path, help="for yolo")
    annotate.add_argument("--hand-weights", type=Path, help="for yolo")
    annotate.add_argument(
        "--trust-weights", action="store_true", help="load pickled weights, which can run code"
    )
    annotate.add_argument(
        "--force", action="store_true", help="replace the annotations of humans too"
    )
    annotate.add_argument("--jobs", type=int, help="processes; default: one per core")
    annotate.set_defaults(run=_annotate)

    inspect = commands.add_parser("inspect", help="write a page that shows what is in a data set")
    inspect.add_argument("folder", type=Path, help="a data set")
    inspect.add_argument("--out", type=Path, default=Path("inspect.html"))
    inspect.add_argument("--resolution", type=int, help="default: 1024, or the config's")
    inspect.add_argument("--limit", type=int, default=300, help="samples on the page")
    inspect.add_argument(
        "--train-view", action="store_true", help="show the samples as the trainer has them"
    )
    inspect.add_argument("--config", type=Path, help="the training config, for --train-view")
    inspect.add_argument("--epoch", type=int, default=0, help="whose crops --train-view shows")
    inspect.add_argument("--strict", action="store_true", help="list mistakes; exit 1 if any")
    inspect.add_argument(
        "--allow", action="append", default=[], metavar="KIND", help="no mistake for --strict"
    )
    inspect.set_defaults(run=_inspect)

    generate = commands.add_parser("generate", help="draw pictures with a trained model")
    generate.add_argument("--model", required=True, help="OUT/final, or any SDXL")
    generate.add_argument("--prompt", action="append", default=[], help="may be repeated")
    generate.add_argument("--prompts", type=Path, metavar="FILE", help="a text file, one per line")
    generate.add_argument("--out", type=Path, required=True)
    generate.add_argument(
        "--config",
        metavar="FOLDER",
        help="of a single file: an SDXL in diffusers' layout that describes it; default: SDXL base",
    )
    generate.add_argument("--batch-size", type=int, default=4, help="pictures at a time")
    generate.add_argument("--lora", type=Path, help="OUT/final of a LoRA, or a .safetensors file")
    generate.add_argument("--controlnet", help="OUT/final of a ControlNet, or a hub name")
    generate.add_argument("--adapter", help="OUT/final of a T2I-Adapter, or a hub name")
    generate.add_argument(
        "--control",
        type=Path,
        action="append",
        default=[],
        metavar="IMAGE",
        help="the control image of all pictures; or one each, in their order",
    )
    generate.add_argument("--lora-scale", type=float, default=1.0, help="how much it counts")
    generate.add_argument("--negative", default="", help="what should not be in the pictures")
    generate.add_argument("--count", type=int, default=1, help="pictures per prompt")
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--steps", type=int, default=30)
    generate.add_argument("--guidance", type=float, default=5.0)
    generate.add_argument("--size", type=int, help="side in pixels; default: the model's own")
    generate.set_defaults(run=_generate)

    export = commands.add_parser("export", help="a trained model in the form that a tool opens")
    export.add_argument(
        "--model", type=Path, required=True, help="OUT/final, a LoRA, or a single .safetensors file"
    )
    export.add_argument(
        "--to", choices=["single-file", "comfy-lora", "diffusers"], required=True, dest="form"
    )
    export.add_argument("--out", type=Path, required=True, help="the file, or diffusers' folder")
    export.add_argument("--dtype", choices=["fp16", "bf16", "fp32"], help="default: as it is")
    export.add_argument(
        "--config",
        metavar="FOLDER",
        help="an SDXL in diffusers' layout (or a hub name) whose configs describe the model; "
        "default: SDXL base",
    )
    export.add_argument(
        "--meta",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for the file's header: title, author, license …; may be repeated",
    )
    export.add_argument(
        "--allow-pickle", action="store_true", help="read .ckpt, .bin and .pt too (tensors only)"
    )
    export.add_argument("--force", action="store_true", help="replace --out")
    export.set_defaults(run=_export)

    doctor = commands.add_parser(
        "doctor", help="what was built, what the machine has, what each config would use"
    )
    doctor.add_argument("--config", nargs="+", help="default: those in configs/, if there are any")
    doctor.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="print the memory that --config needs on each of N GPUs, computed without weights",
    )
    doctor.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="of --config, with --gpus"
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


def _format(formats: Any, name: str, title: str) -> argparse.ArgumentParser:
    """Add an import format whose files are named like the images they belong to."""
    parser: argparse.ArgumentParser = formats.add_parser(name, help=title)
    parser.add_argument("--images", type=Path, required=True, help="the folder of the images")
    parser.add_argument(
        "--captions",
        type=Path,
        help="JSON lines: file_name, text; default: .txt files beside the images",
    )
    parser.add_argument("--out", type=Path, required=True)
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


def _import_openpose(args: argparse.Namespace) -> None:
    from fairhuman.data.importers.openpose import import_openpose

    done = import_openpose(args.keypoints, args.images, args.out, args.captions, args.confidence)
    print(f"{args.out}: {done.images} images, {done.faces} faces, {done.hands} hands")
    if done.unannotated:
        print(f"{done.unannotated} images have no keypoint file and were left out")


def _import_yolo(args: argparse.Namespace) -> None:
    from fairhuman.data.importers.yolo import import_yolo

    done = import_yolo(
        args.labels, args.images, args.out, args.face_class, args.hand_class, args.captions
    )
    print(f"{args.out}: {done.images} images, {done.faces} faces, {done.hands} hands")
    if done.unannotated:
        print(f"{done.unannotated} images have no label file: taken as holding none")


def _import_masks(args: argparse.Namespace) -> None:
    from fairhuman.data.importers.masks import import_masks

    found = import_masks(
        args.images, args.out, args.face_masks, args.hand_masks, args.invert, args.captions
    )
    masks = ", ".join(f"{count} {region} masks" for region, count in found.masks.items())
    print(f"{args.out}: {found.done.images} images, {masks}")
    if found.done.unannotated:
        print(f"{found.done.unannotated} images lack one of their masks: not annotated for it")
    if found.bright:
        print(
            f"{len(found.bright)} masks are mostly white, such as {found.bright[0]}: if black is "
            "the region in them, import them anew with --invert"
        )


def _export_annotations(args: argparse.Namespace) -> None:
    from fairhuman.data.export_coco import export_coco

    done = export_coco(args.folder, args.out)
    print(f"{args.out}: {done.annotations} annotations of {done.images} images")


def _annotate(args: argparse.Namespace) -> int:
    from fairhuman.annotation.annotate import annotate
    from fairhuman.annotation.detector import DetectorChoice

    if not 0 < args.threshold < 1:
        raise UserError(f"--threshold {args.threshold}: must be between 0 and 1")
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: must be at least 1")
    settings = {"threshold": args.threshold}
    weights = {"face_weights": args.face_weights, "hand_weights": args.hand_weights}
    if args.detector == "yolo":
        settings |= weights | {"trust_weights": args.trust_weights}
    elif any(weights.values()) or args.trust_weights:
        raise UserError("--face-weights, --hand-weights and --trust-weights need --detector yolo")
    choice = DetectorChoice(args.detector, settings)
    try:
        done = annotate(args.folder, choice, force=args.force, jobs=args.jobs)
    except KeyboardInterrupt:
        print(
            f"fairhuman: stopped; the same command goes on where {args.folder} was left",
            file=sys.stderr,
        )
        return 130
    print("\n".join(done.lines()))
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from fairhuman.config import load_config
    from fairhuman.inspection.findings import KINDS
    from fairhuman.inspection.inspect import View, inspect, write_page

    for kind in args.allow:
        if kind not in KINDS:
            raise UserError(f"--allow {kind}: must be one of {', '.join(KINDS)}")
    if args.train_view != bool(args.config):
        raise UserError("--train-view and --config go together: the crop is the config's")
    if args.train_view:
        sized = [f"data.resolution={args.resolution}"] if args.resolution else []
        view = View.of(load_config(args.config, [f"data.root={args.folder}", *sized]), args.epoch)
    else:
        view = View.plain(args.folder, args.resolution or 1024)
    found = inspect(args.folder, view)
    write_page(found, args.out, args.limit)
    print(found.summary())
    mistakes = found.mistakes(frozenset(args.allow)) if args.strict else []
    for line in mistakes:
        print(line)
    print(f"see {args.out}")
    return 1 if mistakes else 0


def _generate(args: argparse.Namespace) -> None:
    from fairhuman.generate import generate, read_prompts

    prompts = args.prompt + (read_prompts(args.prompts) if args.prompts else [])
    paths = generate(
        args.model,
        [prompt for prompt in prompts for _ in range(args.count)],
        args.out,
        config=args.config,
        batch_size=args.batch_size,
        negative=args.negative,
        seed=args.seed,
        steps=args.steps,
        guidance=args.guidance,
        size=args.size,
        lora=args.lora,
        lora_scale=args.lora_scale,
        controlnet=args.controlnet,
        adapter=args.adapter,
        controls=_per_picture(args.control, args.count),
    )
    print(f"{len(paths)} pictures in {args.out}")


def _per_picture(controls: list[Path], count: int) -> list[Path]:
    """Repeat the control images of the prompts as the prompts are; one is for all."""
    return controls if len(controls) == 1 else [path for path in controls for _ in range(count)]


def _export(args: argparse.Namespace) -> None:
    from fairhuman.export.command import export
    from fairhuman.runtime import quiet

    quiet()
    done = export(
        args.model,
        args.form,
        args.out,
        dtype=args.dtype,
        config=args.config,
        meta=args.meta,
        allow_pickle=args.allow_pickle,
        force=args.force,
    )
    print(done)


def _doctor(args: argparse.Namespace) -> int:
    # argparse gives all that follows --config to it.
    given = [*(args.config or []), *args.overrides]
    overrides = [word for word in given if "=" in word]
    configs = [Path(word) for word in given if "=" not in word]
    if args.gpus is not None:
        return _doctor_memory(args, configs, overrides)
    if overrides:
        raise UserError(f"{overrides[0]}: overrides go with --gpus; change the config instead")
    if args.checkpoint:
        return _doctor_checkpoint(args, configs)
    from fairhuman.doctor import examine

    report = examine(configs or sorted(Path("configs").glob("*.yaml")))
    print(json.dumps(asdict(report), indent=2) if args.json else "\n".join(report.lines()))
    return 1 if report.problems else 0


def _doctor_memory(args: argparse.Namespace, configs: list[Path], overrides: list[str]) -> int:
    if args.gpus < 1:
        raise UserError(f"--gpus {args.gpus}: must be at least 1")
    if args.checkpoint:
        raise UserError("--gpus: plans a config's memory; leave --checkpoint out")
    if len(configs) != 1:
        raise UserError(
            f"--gpus: plans one config's memory; give --config one ({len(configs)} given)"
        )
    from fairhuman.config import load_config

    config = load_config(configs[0], overrides)
    from fairhuman.runtime import quiet

    quiet()
    from fairhuman.memory import Sizes, plan_memory

    plan = plan_memory(config, Sizes.of(config), args.gpus)
    print(json.dumps(plan.as_json(), indent=2) if args.json else "\n".join(plan.lines()))
    return 0


def _doctor_checkpoint(args: argparse.Namespace, configs: list[Path]) -> int:
    from fairhuman.runtime import quiet

    quiet()
    from fairhuman.checkpoint_report import as_json, examine

    if len(configs) > 1:
        raise UserError("--config: give one config at most with --checkpoint")
    found = examine(args.checkpoint, configs[0] if configs else None)
    print(json.dumps(as_json(found), indent=2) if args.json else "\n".join(found.lines()))
    return 0 if found.sound else 1


if __name__ == "__main__":
    sys.exit(main())
