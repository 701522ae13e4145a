"""python -m fastadam demo | compare | config: the main job on real data, optimizers in pictures, how it runs here."""

import argparse


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m fastadam", description="Adam for NumPy arrays on CPUs.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="train an MLP on handwritten digits, with and without fastadam")
    demo.add_argument("--output", default="fastadam-demo.png", help="where to write the picture (default: %(default)s)")
    compare = commands.add_parser("compare", help="draw what five optimizers do on five landscapes, on one page")
    compare.add_argument("--output", default="fastadam-compare.html", help="where to write it (default: %(default)s)")
    compare.add_argument("--pictures", metavar="DIR", help="write still pictures of the same, too")
    commands.add_parser("config", help="print what this installation is and how it runs")
    chosen = parser.parse_args(arguments)
    if chosen.command == "demo":
        from fastadam.demo import main as run_demo

        run_demo(chosen.output)
    elif chosen.command == "compare":
        from fastadam.compare import main as run_compare

        run_compare(chosen.output, chosen.pictures)
    else:
        from fastadam import show_config

        show_config()


if __name__ == "__main__":
    main()
