"""python3 .ci/check_wheel.py WHEEL...: is each small, with our headers, and needs only what glibcs since 2.17 have?

Symbols of pthread and dl moved into libc with glibc 2.32 and 2.34. Linked there they have these versions, by which
auditwheel names the oldest system. Any other symbol newer than 2.17 is a mistake of ours. (musl has no versions.)
"""

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MOST = 1_500_000  # bytes
MOVED = re.compile(r"(__)?pthread_|sem_|dl(open|sym|close|error|addr)$")
PUBLIC = {"__init__.pxd", "include/fastadam_api.h", "include/fastadam_import.h"}
OLD, MOVES = (2, 17), {(2, 32), (2, 34)}


def too_new(library):
    listing = subprocess.run(["objdump", "-T", library], check=True, capture_output=True, text=True).stdout
    for version, name in re.findall(r"\*UND\*.*GLIBC_([\d.]+)\)?\s+(\S+)", listing):
        number = tuple(map(int, version.split(".")))
        if number > OLD and not (number in MOVES and MOVED.match(name)):
            yield f"{name}@GLIBC_{version}"


def main(wheels):
    for wheel in map(Path, wheels):
        size = wheel.stat().st_size
        with tempfile.TemporaryDirectory() as folder:
            zipfile.ZipFile(wheel).extractall(folder)
            missing = [name for name in PUBLIC if not Path(folder, "fastadam", name).is_file()]
            found = {path.name: sorted(too_new(path)) for path in Path(folder).rglob("*.so*")}
        if not any(name.startswith("_core") for name in found):
            raise SystemExit(f"{wheel.name}: there is no _core in it")
        if missing:
            raise SystemExit(f"{wheel.name}: there is no {', '.join(missing)} in it")
        wrong = {name: names for name, names in found.items() if names}
        if size > MOST or wrong:
            raise SystemExit(f"{wheel.name}: {size} bytes (at most {MOST}), symbols newer than 2.17: {wrong or 'none'}")
        print(f"{wheel.name}: {size} bytes; {', '.join(found)}: nothing newer than glibc 2.17 but what moved into libc")


if __name__ == "__main__":
    main(sys.argv[1:])
