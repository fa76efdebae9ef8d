"""`fairhuman import`: annotations, and folders of other trainers, become data sets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairhuman.common.errors import UserError

if TYPE_CHECKING:
    from fairhuman.data.records import Problem

REGIONS = ("face", "hand")


def add(commands: Any) -> None:
    """Add it to the subparsers of `fairhuman`."""
    importer = commands.add_parser(
        "import", help="import annotations, or the data set of another trainer"
    )
    formats = importer.add_subparsers(required=True, metavar="FORMAT")
    coco = formats.add_parser("coco-wholebody", help="COCO-WholeBody's JSON")
    coco.add_argument("--annotations", type=Path, required=True, help="the JSON file")
    coco.add_argument("--images", type=Path, required=True, help="the folder of the images")
    coco.add_argument(
        "--captions", type=Path, help="COCO's captions JSON, or JSON lines: file_name, text"
    )
    coco.add_argument("--out", type=Path, required=True, help="the data set to make")
    coco.set_defaults(run=_import_coco_wholebody)
    openpose = _format(formats, "openpose", "OpenPose's or DWPose's keypoint JSON")
    openpose.add_argument("--keypoints", type=Path, required=True, help="the folder of STEM.json")
    openpose.add_argument(
        "--confidence", type=float, default=0.3, help="minimum confidence of a keypoint"
    )
    openpose.set_defaults(run=_import_openpose)
    yolo = _format(formats, "yolo", "YOLO's label files")
    yolo.add_argument("--labels", type=Path, required=True, help="the folder of STEM.txt")
    for region in ("face", "hand"):
        yolo.add_argument(
            f"--{region}-class",
            type=int,
            action="append",
            default=[],
            help="a class number, may be repeated",
        )
    yolo.set_defaults(run=_import_yolo)
    masks = _format(formats, "masks", "mask images named like their images")
    for region in ("face", "hand"):
        masks.add_argument(f"--{region}-masks", type=Path, help="their folder; white = region")
    masks.add_argument("--invert", action="store_true", help="black = region")
    masks.add_argument(
        "--mask-suffix",
        help="what is appended to an image's name in its mask's, such as --mask-suffix=-mask; "
        "default: nothing or -masklabel, and in the images' own folder -masklabel",
    )
    masks.set_defaults(run=_import_masks)
    _add_kohya(formats)
    onetrainer = _folder(
        formats, "onetrainer", "OneTrainer's images, captions and masks", "the folder of a concept"
    )
    onetrainer.add_argument(
        "--region", choices=REGIONS, help="what NAME-masklabel.png shows; default: they are left"
    )
    onetrainer.set_defaults(run=_import_onetrainer)
    imagefolder = _folder(
        formats,
        "imagefolder",
        "diffusers' and datasets' images with metadata.csv",
        "the folder of the images and of metadata.csv, .jsonl or .parquet",
    )
    imagefolder.add_argument("--caption-column", default="text", help="the column of the captions")
    imagefolder.set_defaults(run=_import_imagefolder)
    _add_parquet(formats)


def _add_kohya(formats: Any) -> None:
    parser = _folder(
        formats,
        "kohya",
        "sd-scripts' folders N_name of images and captions",
        "train_data_dir, or one image_dir",
    )
    parser.add_argument(
        "--caption-extension", help="ending of the caption files; default: .txt, or else .caption"
    )
    parser.add_argument(
        "--masks", type=Path, help="the folder of the masks (conditioning_data_dir), for --region"
    )
    parser.add_argument(
        "--alpha-mask", action="store_true", help="the images' alpha is their mask, for --region"
    )
    parser.add_argument("--region", choices=REGIONS, help="what the masks show")
    parser.set_defaults(run=_import_kohya)


def _add_parquet(formats: Any) -> None:
    parser = _folder(
        formats,
        "parquet",
        "SimpleTuner's images with captions in a table",
        "the folder of the images",
    )
    parser.add_argument("--table", type=Path, required=True, help="a .parquet, .jsonl or .csv file")
    parser.add_argument(
        "--filename-column",
        default="filename",
        help="the column of the images' names, with or without ending",
    )
    parser.add_argument("--caption-column", default="caption", help="the column of the captions")
    parser.add_argument(
        "--fallback-caption-column", help="the column of captions for rows without one"
    )
    parser.set_defaults(run=_import_parquet)


def _format(formats: Any, name: str, title: str) -> argparse.ArgumentParser:
    """Add an import format whose files are named like the images they belong to."""
    parser: argparse.ArgumentParser = formats.add_parser(name, help=title)
    parser.add_argument("--images", type=Path, required=True, help="the folder of the images")
    parser.add_argument(
        "--captions",
        type=Path,
        help="JSON lines: file_name, text; default: .txt or .caption files next to the images",
    )
    parser.add_argument("--out", type=Path, required=True, help="the data set to make")
    return parser


def _folder(formats: Any, name: str, title: str, images: str) -> argparse.ArgumentParser:
    """Add an import format of another trainer, whose folder of `images` holds captions too."""
    parser: argparse.ArgumentParser = formats.add_parser(name, help=title)
    parser.add_argument("--images", type=Path, required=True, help=images)
    parser.add_argument("--out", type=Path, required=True, help="the data set to make")
    return parser


def _import_coco_wholebody(args: argparse.Namespace) -> None:
    from fairhuman.curation.importers.coco_wholebody import import_coco_wholebody

    done = import_coco_wholebody(args.annotations, args.images, args.out, args.captions)
    print(f"{args.out}: {done.images} images, {done.faces} faces, {done.hands} hands")
    if done.missing:
        print(f"{done.missing} annotated images are not in {args.images} and were left out")
    _say_left_out(done.left_out)


def _import_openpose(args: argparse.Namespace) -> None:
    from fairhuman.curation.importers.openpose import import_openpose

    done = import_openpose(args.keypoints, args.images, args.out, args.captions, args.confidence)
    print(f"{args.out}: {done.images} images, {done.faces} faces, {done.hands} hands")
    if done.unannotated:
        print(f"{done.unannotated} images have no keypoint file and were left out")
    _say_left_out(done.left_out)


def _import_yolo(args: argparse.Namespace) -> None:
    from fairhuman.curation.importers.yolo import import_yolo

    done = import_yolo(
        args.labels, args.images, args.out, args.face_class, args.hand_class, args.captions
    )
    print(f"{args.out}: {done.images} images, {done.faces} faces, {done.hands} hands")
    if done.unannotated:
        print(f"{done.unannotated} images have no label file: taken as holding none")
    _say_left_out(done.left_out)


def _import_masks(args: argparse.Namespace) -> None:
    from fairhuman.curation.importers.masks import import_masks

    found = import_masks(
        args.images,
        args.out,
        args.face_masks,
        args.hand_masks,
        args.invert,
        args.captions,
        args.mask_suffix,
    )
    masks = ", ".join(f"{count} {region} masks" for region, count in found.masks.items())
    print(f"{args.out}: {found.done.images} images, {masks}")
    if found.done.unannotated:
        print(f"{found.done.unannotated} images lack one of their masks: not annotated for it")
    if found.bright:
        print(
            f"{len(found.bright)} masks are mostly white, such as {found.bright[0]}: if black is "
            "the region in them, import them again with --invert"
        )
    _say_left_out(found.done.left_out)


def _import_kohya(args: argparse.Namespace) -> None:
    from fairhuman.curation.importers.kohya import KohyaMasks, import_kohya

    if args.masks and args.alpha_mask:
        raise UserError("--masks and --alpha-mask: give one of the two")
    given = "--masks" if args.masks else "--alpha-mask" if args.alpha_mask else None
    if given and not args.region:
        raise UserError(
            f"{given}: give --region face or hand: a mask here shows a region; leave {given} out "
            "where the masks show something else"
        )
    if args.region and not given:
        raise UserError("--region: give --masks DIR or --alpha-mask: where the masks are")
    masks = KohyaMasks(args.region, args.masks) if given else None
    done = import_kohya(args.images, args.out, masks, args.caption_extension)
    print("\n".join(done.lines(args.out)))


def _import_onetrainer(args: argparse.Namespace) -> None:
    from fairhuman.curation.importers.onetrainer import import_onetrainer

    print("\n".join(import_onetrainer(args.images, args.out, args.region).lines(args.out)))


def _import_imagefolder(args: argparse.Namespace) -> None:
    from fairhuman.curation.importers.listed import import_imagefolder

    done = import_imagefolder(args.images, args.out, args.caption_column)
    print("\n".join(done.lines(args.out)))


def _import_parquet(args: argparse.Namespace) -> None:
    from fairhuman.curation.importers.listed import Columns, import_table

    columns = Columns(args.filename_column, args.caption_column, args.fallback_caption_column)
    done = import_table(args.table, args.images, args.out, columns)
    print("\n".join(done.lines(args.out)))


def _say_left_out(problems: Sequence[Problem]) -> None:
    """Print what was passed over, a line for each."""
    if problems:
        print(f"{len(problems)} left out:")
    for problem in problems:
        print(f"  {problem}")
