"""The commands of `python -m fastadam`: the main job on real data, optimizers in pictures, how it runs here."""

import argparse
from pathlib import Path

from fastadam.gallery.demo import EPOCHS, QUICK


def count(text):
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return number


def output(text):
    """A file that can be written, as far as can be seen now rather than after minutes of work."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, got the folder {text!r}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"must be in a folder that exists, got {text!r}: make {str(path.parent)!r} first"
        )
    return text


def folder(text):
    if Path(text).exists() and not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"must be a folder or not exist yet, got the file {text!r}")
    return text


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m fastadam", description="Adam for NumPy arrays on CPUs.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="train an MLP on handwritten digits, with and without fastadam")
    where = "where to write the %s (default: %%(default)s)"
    demo.add_argument("--output", type=output, default="fastadam-demo.png", help=where % "picture")
    length = demo.add_mutually_exclusive_group()
    often = "how often to see all digits (default: %(default)s)"
    length.add_argument("--epochs", type=count, default=EPOCHS, metavar="N", help=often)
    quick = f"as --epochs {QUICK}, which takes a few seconds"
    length.add_argument("--quick", dest="epochs", action="store_const", const=QUICK, help=quick)
    compare = commands.add_parser("compare", help="draw what five optimizers do on five landscapes, on one page")
    compare.add_argument("--output", type=output, default="fastadam-compare.html", help=where % "page")
    compare.add_argument("--pictures", type=folder, metavar="DIR", help="write still pictures of the same, too")
    commands.add_parser("config", help="print what this installation is and how it runs")
    chosen = parser.parse_args(arguments)
    if chosen.command == "demo":
        from fastadam.gallery.demo import main as run_demo

        run_demo(chosen.output, epochs=chosen.epochs)
    elif chosen.command == "compare":
        from fastadam.gallery.compare import main as run_compare

        run_compare(chosen.output, chosen.pictures)
    else:
        from fastadam import show_config

        show_config()
