"""python -m bench COMMAND [--help]: peers (versus), training loops (loop, sklearn_fit, spacy_fit), formats, ..."""

import importlib
import sys

COMMANDS = ("versus", "own", "loop", "sklearn_fit", "spacy_fit", "busy", "scaling", "rows", "formats", "quality")
COMMANDS += ("large", "embedded", "torch", "mpi", "instructions", "report")


def main():
    command, *arguments = sys.argv[1:] or ["--help"]
    if command not in COMMANDS:
        raise SystemExit(f"{__doc__}\ncommands: {', '.join(COMMANDS)}")
    module = importlib.import_module(f"bench.{command}")
    if hasattr(module, "main"):
        module.main(arguments)
    else:
        from .results import run  # not above: it imports fastadam, which the processes of peers must not

        run(command, module, arguments)


if __name__ == "__main__":
    main()
