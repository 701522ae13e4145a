"""python -m bench COMMAND [--help]: peers and promises (versus), training loops (loop, sklearn_fit), scaling ..."""

import importlib
import sys

COMMANDS = ("versus", "loop", "sklearn_fit", "busy", "scaling", "installing", "instructions", "report")


def main():
    command, *arguments = sys.argv[1:] or ["--help"]
    if command not in COMMANDS:
        raise SystemExit(f"{__doc__}\ncommands: {', '.join(COMMANDS)}")
    importlib.import_module(f"bench.{command}").main(arguments)


if __name__ == "__main__":
    main()
