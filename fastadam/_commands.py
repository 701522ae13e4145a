"""The commands of `python -m fastadam`."""

import argparse
import json
from pathlib import Path

import fastadam
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


def printable(text):
    """Names in files may be anybody's: no control characters reach the terminal."""
    return text if text.isprintable() else repr(text)


def show_checkpoint(path):
    """Print what is in a checkpoint: what `fastadam.inspect` returns, for people."""
    try:
        found = fastadam.inspect(path)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None
    params, state, steps = found["params"], found["state"], found["steps"]
    rows = [("array", "dtype", "shape", "steps", "state")]
    for key in dict.fromkeys([*params, *state]):
        names = state.get(key, {})
        like = params.get(key) or next(iter(names.values()), {"dtype": "?", "shape": ()})
        shape, kept = " x ".join(map(str, like["shape"])), ", ".join(map(printable, names))
        rows.append((printable(key), str(like["dtype"]), shape, str(steps.get(key, "")), kept or "-"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    name = found["optimizer"]
    optimizer = "no optimizer" if name is None else f"{printable(name)} at step {max(steps.values(), default=0)}"
    print(f"{path}: {optimizer}, {'' if params else 'no '}parameters")
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for group in found["param_groups"]:
        values = ", ".join(f"{printable(name)}={value!r}" for name, value in group.items() if name != "params")
        scheduled = "" if "lr" in group else "lr from a schedule, "
        print(f"hyper-parameters of {len(group['params'])} arrays: {scheduled}{values}")
    print(f"metadata: {json.dumps(found['metadata'])}")


EXAMPLES = """examples:
  python -m fastadam demo --quick             what it gains against Adam in NumPy, on real data
  python -m fastadam config                   how steps run on this machine
  python -m fastadam inspect run.safetensors  what is in a checkpoint"""


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m fastadam",
        description="Adam and its family for NumPy arrays on CPUs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fastadam {fastadam.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
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
    commands.add_parser("config", help="say how steps run on this machine, and what may help")
    inspect = commands.add_parser("inspect", help="say what is in a checkpoint")
    inspect.add_argument("file", metavar="FILE", help="a .safetensors or .npz file that fastadam.save wrote")
    chosen = parser.parse_args(arguments)
    if chosen.command is None:
        parser.print_help()
    elif chosen.command == "demo":
        from fastadam.gallery.demo import main as run_demo

        run_demo(chosen.output, epochs=chosen.epochs)
    elif chosen.command == "compare":
        from fastadam.gallery.compare import main as run_compare

        run_compare(chosen.output, chosen.pictures)
    elif chosen.command == "inspect":
        show_checkpoint(chosen.file)
    else:
        fastadam.show_config()
