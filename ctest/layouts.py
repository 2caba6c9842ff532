#!/usr/bin/env python3
"""Checks a list of sizes and offsets against the headers: layouts.py LIST HEADERS COMPILER [FLAG...].

Only compiles, and needs no C library, so that one compiler checks many systems.
"""
import re
import subprocess
import sys

LINE = re.compile(r"(?P<type>\w+)(?:\.(?P<field>\w+))? (?:size|offset) (?P<number>\d+)$")


def assertion(line):
    match = LINE.match(line)
    if not match:
        sys.exit(f"not a line of a list: {line!r}")
    kind, field, number = match["type"], match["field"], match["number"]
    what = f"__builtin_offsetof({kind}, {field})" if field else f"sizeof({kind})"
    return f'_Static_assert({what} == {number}, "{line}");\n'


def main(path, headers, *command):
    with open(path, encoding="ascii") as file:
        lines = file.read().splitlines()
    source = '#include "aiot_tunnel_api.h"\n' + "".join(map(assertion, lines))
    command = [*command, "-x", "c", "-std=c11", "-ffreestanding", "-fsyntax-only", "-Wall", "-Wextra", "-Werror",
               f"-I{headers}", "-"]
    status = subprocess.run(command, input=source, text=True).returncode
    print(f"{len(lines)} layouts, {' '.join(command)}: {'good' if status == 0 else 'bad'}")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
