"""Commands of models: make one for the demo, draw with one, export one."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from fairhuman.cli.stopped import stopped
from fairhuman.common.counted import counted
from fairhuman.common.errors import UserError


def add(commands: Any) -> None:
    """Add them to the subparsers of `fairhuman`."""
    model = commands.add_parser("demo-model", help="create the demo's tiny SDXL")
    model.add_argument("--data", type=Path, default=Path("demo/people"), help="the drawn people")
    model.add_argument(
        "--out", type=Path, default=Path("demo/tiny-sdxl"), help="the model's folder"
    )
    model.add_argument("--seed", type=int, default=0, help="seed of the weights and the fit")
    model.set_defaults(run=_demo_model)

    generate = commands.add_parser("generate", help="generate images")
    generate.add_argument(
        "--model", required=True, help="OUT/final, or any model of a supported family"
    )
    generate.add_argument("--prompt", action="append", default=[], help="a prompt; may be repeated")
    generate.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="prompts: one per line, or a YAML list or JSON lines (.jsonl) with settings of each",
    )
    generate.add_argument("--out", type=Path, required=True, help="output folder")
    generate.add_argument(
        "--config",
        metavar="FOLDER",
        help="an SDXL in diffusers' layout that describes a single file; default: SDXL base",
    )
    generate.add_argument(
        "--quantize",
        choices=["int8", "nf4"],
        help="keep the transformer blocks in 8 or 4 bits per weight; default: whole",
    )
    generate.add_argument("--batch-size", type=int, default=4, help="images per batch")
    generate.add_argument(
        "--lora", type=Path, help="OUT/final of a LoRA, a .safetensors file, or a hub name"
    )
    generate.add_argument("--controlnet", help="OUT/final of a ControlNet, or a hub name")
    generate.add_argument("--adapter", help="OUT/final of a T2I-Adapter, or a hub name")
    generate.add_argument(
        "--control",
        type=Path,
        action="append",
        default=[],
        metavar="IMAGE",
        help="control image for all images, or one for each, in their order",
    )
    generate.add_argument("--lora-scale", type=float, default=1.0, help="strength of the LoRA")
    generate.add_argument("--negative", default="", help="negative prompt")
    generate.add_argument(
        "--long-prompts",
        choices=["cut", "chunk"],
        default="cut",
        help="prompts of more than 75 tokens: read the first 75, or chunks of 75; default: cut",
    )
    generate.add_argument("--count", type=int, default=1, help="images per prompt")
    generate.add_argument(
        "--seed", type=int, default=0, help="seed of the first image; each further image adds 1"
    )
    generate.add_argument("--steps", type=int, default=30, help="sampling steps")
    generate.add_argument(
        "--guidance", type=float, default=5.0, help="classifier-free guidance scale; 1 turns it off"
    )
    generate.add_argument(
        "--size", type=int, help="width and height in pixels; default: the model's own"
    )
    generate.set_defaults(run=_generate)

    export = commands.add_parser("export", help="convert a trained model for other tools")
    export.add_argument(
        "--model", type=Path, required=True, help="OUT/final, a LoRA, or a single .safetensors file"
    )
    export.add_argument(
        "--to",
        choices=["single-file", "comfy-lora", "kohya-lora", "diffusers"],
        required=True,
        dest="form",
        help="output format; single-file holds a whole SDXL, and of other families the transformer "
        "alone: text encoders and VAE stay the base model's",
    )
    export.add_argument(
        "--out", type=Path, required=True, help="output file, or folder for diffusers"
    )
    export.add_argument(
        "--dtype",
        choices=["fp16", "bf16", "fp32"],
        help="precision of the weights; default: unchanged",
    )
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
        help="an entry of the file's header: title, author, license …; may be repeated",
    )
    export.add_argument(
        "--allow-pickle", action="store_true", help="read .ckpt, .bin and .pt too (tensors only)"
    )
    export.add_argument("--force", action="store_true", help="replace --out if it exists")
    export.set_defaults(run=_export)


def _demo_model(args: argparse.Namespace) -> None:
    from fairhuman.demo.model import Recipe, make_demo_model

    make_demo_model(args.data, args.out, Recipe(seed=args.seed))


def _generate(args: argparse.Namespace) -> int:
    if not 1 <= args.count <= 10_000:
        raise UserError(f"--count {args.count}: must be from 1 to 10000")
    count = 0
    try:
        with _terminable():
            from fairhuman.config.prompt_file import read_prompt_file
            from fairhuman.models.generate import Sampling, Source, generate

            prompts = args.prompt + (read_prompt_file(args.prompts) if args.prompts else [])
            prompts = [_again(prompt, i) for prompt in prompts for i in range(args.count)]
            count = len(prompts)
            source = Source(
                model=args.model,
                config=args.config,
                quantize=args.quantize,
                lora=args.lora,
                lora_scale=args.lora_scale,
                controlnet=args.controlnet,
                adapter=args.adapter,
                controls=_per_picture(args.control, args.count),
            )
            sampling = Sampling(
                negative=args.negative,
                seed=args.seed,
                steps=args.steps,
                guidance=args.guidance,
                size=args.size,
                batch_size=args.batch_size,
                long_prompts=args.long_prompts,
            )
            paths = generate(source, prompts, args.out, sampling)
    except KeyboardInterrupt:
        kept = sum((args.out / f"{index:04d}.png").is_file() for index in range(count))
        return stopped(f"{kept} of {count} pictures are in {args.out}")
    print(f"{counted(len(paths), 'picture')} in {args.out}")
    return 0


def _again(prompt: Any, count: int) -> Any:
    """Return a prompt as it is drawn after so many pictures of it: a seed of its own goes on."""
    if isinstance(prompt, str) or prompt.seed is None or not count:
        return prompt
    return prompt.model_copy(update={"seed": prompt.seed + count})


@contextmanager
def _terminable() -> Iterator[None]:
    """Have SIGTERM end the work as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _per_picture(controls: list[Path], count: int) -> list[Path]:
    """Repeat the control images of the prompts as the prompts are; one is for all."""
    return controls if len(controls) == 1 else [path for path in controls for _ in range(count)]


def _export(args: argparse.Namespace) -> None:
    from fairhuman.common.quiet import quiet
    from fairhuman.models.formats.export import export

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
