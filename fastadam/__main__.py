"""python -m fastadam demo [--output PICTURE]: train on real data, with and without fastadam."""

import argparse


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m fastadam", description="Adam for NumPy arrays on CPUs.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="train an MLP on handwritten digits, with and without fastadam")
    demo.add_argument("--output", default="fastadam-demo.png", help="where to write the picture (default: %(default)s)")
    commands.add_parser("config", help="print what this installation is and how it runs")
    chosen = parser.parse_args(arguments)
    if chosen.command == "demo":
        from fastadam.demo import main as run_demo

        run_demo(chosen.output)
    else:
        from fastadam import show_config

        show_config()


if __name__ == "__main__":
    main()
