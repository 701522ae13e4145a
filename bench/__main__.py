"""python -m bench bars | loop | versus"""

import sys


def main():
    command, *arguments = sys.argv[1:] or ["help"]
    if command == "bars":
        from .bars import main as run

        run(arguments)
    elif command == "loop":
        from .loop import main as run

        run(arguments)
    elif command == "versus":
        from .versus import main as run

        run(arguments)
    else:
        raise SystemExit(f"{__doc__}: see each with --help")


if __name__ == "__main__":
    main()
