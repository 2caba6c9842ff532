#!/usr/bin/env python3
"""Compiles firmware that includes the core's headers and this library's: headers.py COMPILER INCLUDE_FOLDER.

Every order of the two include paths and of the three includes, and this library's folder alone for what both have,
as C99 to C17 and C++11 to C++20. Then the sources of the core, each with this library's folder first.
"""
import itertools
import pathlib
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
DIALECTS = ["c99", "c11", "c17", "c++11", "c++14", "c++17", "c++20"]
SHARED = ["aiot_state_api.h", "aiot_sysdep_api.h"]


def main(compiler, ours):
    failed = count = 0
    with tempfile.TemporaryDirectory() as folder:
        # The core's headers without the two that this library has as well.
        rest = pathlib.Path(folder)
        for header in ["aiot_mqtt_api.h", "core_log.h", "codes.inc"]:
            shutil.copy(HERE / header, rest)
        firmware = rest / "firmware.c"
        shutil.copy(HERE / "headers.c", firmware)
        paths = {
            "the core's headers first": [f"-I{HERE}", f"-I{ours}"],
            "ours first": [f"-I{ours}", f"-I{HERE}"],
            "ours alone": [f"-I{ours}", f"-I{rest}"],
        }

        def compile(what, source, dialect, arguments):
            language = "c++" if "+" in dialect else "c"
            command = [compiler, "-x", language, f"-std={dialect}", "-D_XOPEN_SOURCE=700", "-D_DEFAULT_SOURCE", "-Wall", "-Wextra",
                       "-Wpedantic", "-Werror", "-fsyntax-only", *arguments, str(source)]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                print(f"{what}, {dialect}:\n{result.stderr}")
            return result.returncode != 0

        for dialect in DIALECTS:
            for name, include in paths.items():
                for order in itertools.permutations([*SHARED, "aiot_tunnel_api.h"]):
                    macros = [f'-D{macro}="{header}"' for macro, header in zip(["FIRST", "SECOND", "THIRD"], order)]
                    failed += compile(f"{name}, {', '.join(order)}", firmware, dialect, [*include, *macros])
                    count += 1
        for source in sorted(HERE.glob("*.c")):
            if source.name in ("headers.c", "app.c"):
                continue
            # The includes of a source look beside it first, so it is compiled from another folder.
            copy = shutil.copy(source, rest)
            for dialect in ["c99", "c17"]:
                failed += compile(source.name, copy, dialect, [*paths["ours first"], "-Wno-unused-parameter"])
                count += 1
    print(f"{compiler}: {count} compilations, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
