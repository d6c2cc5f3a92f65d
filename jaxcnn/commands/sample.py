"""`jaxcnn sample`: images out of a run that generates them, a VAE or a GAN, side by side in one picture."""

import argparse
import re
from functools import partial

from jaxcnn import UserError
from jaxcnn.commands.options import OVERRIDES, Parser, count, parse, picture, set_up_jax
from jaxcnn.locations import place

_MOST = 100  # rows or columns
_ENDINGS = (".png", ".webp", ".bmp")  # pixels are kept as they are, or nearly


def main(argv: list[str]) -> int:
    """Sample as `argv` says."""
    parser = Parser("jaxcnn sample", description=__doc__, epilog=OVERRIDES)
    parser.add_argument("--workdir", metavar="DIR", type=place, required=True, help="folder of the run")
    parser.add_argument("--checkpoint", metavar="STEP|best|last", default="last", help="which one (default: last)")
    parser.add_argument("--save", metavar="PNG", type=partial(picture, endings=_ENDINGS), required=True, help="picture")
    parser.add_argument("--grid", metavar="ROWSxCOLUMNS", type=_grid, default=(8, 8), help="default: 8x8")
    parser.add_argument(
        "--seed", metavar="N", type=partial(count, least=0), default=0, help="of the draws (default: 0)"
    )
    words = "draw latents of at most this magnitude: likelier images, fewer kinds of them (T alone: 1)"
    parser.add_argument("--truncate", metavar="T", type=_magnitude, nargs="?", const=1.0, help=words)
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--interpolate", action="store_true", help="each row goes from one draw to another")
    words = "rows of images of the evaluation set, each above a row of their reconstructions (VAE)"
    kinds.add_argument("--reconstruct", action="store_true", help=words)
    words = "both latents of a network of two, in equal steps of their probability (VAE paper, figure 4)"
    kinds.add_argument("--manifold", action="store_true", help=words)
    arguments, overrides = parse(parser, argv)
    _check(arguments)

    set_up_jax()
    from jaxcnn.training import samples
    from jaxcnn.training.trained import open_run

    run, (rows, columns) = open_run(arguments.workdir, arguments.checkpoint, overrides), arguments.grid
    if arguments.reconstruct:
        images = samples.reconstruct(run, rows, columns)
    elif arguments.manifold:
        images = samples.manifold(run, rows, columns)
    else:
        draw = samples.interpolate if arguments.interpolate else samples.draw
        images = draw(run, rows, columns, arguments.seed, arguments.truncate)
    samples.write_picture(images, arguments.save)
    print(f"samples: {arguments.save} ({rows}×{columns} images of step {run.step:,})")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what does not go together."""
    given = arguments.reconstruct or arguments.manifold
    if given and arguments.truncate is not None:
        raise UserError("--truncate bounds latents that are drawn: leave it out of --reconstruct and --manifold")
    if arguments.reconstruct and arguments.grid[0] % 2:
        raise UserError(f"--grid {arguments.grid[0]}x{arguments.grid[1]}: --reconstruct takes an even number of rows")


def _grid(text: str) -> tuple[int, int]:
    """Return rows and columns, for argparse."""
    match = re.fullmatch(r"(\d{1,3})[x×](\d{1,3})", text)
    rows, columns = map(int, match.groups()) if match else (0, 0)
    if not (1 <= rows <= _MOST and 1 <= columns <= _MOST):
        raise argparse.ArgumentTypeError(f"{text[:80]!r}: write ROWSxCOLUMNS, 1 to {_MOST} each, such as 8x8")
    return rows, columns


def _magnitude(text: str) -> float:
    """Return a positive number, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"{text[:80]!r}: write a positive number, such as 1")
    return number
