#!/usr/bin/env python3
"""Links the core, an application and this library in every order, and runs the result.

    link.py --headers FOLDER --shared libaiot_tunnel.so --static libaiot_tunnel.a [--libs "-lssl ..."] [--quick]

The core is given as objects, as an archive and as a shared library, before and after this library. In each
program the core's port file must work, the core's log switch must receive the lines of both, and main must find
the port file unchanged. Prints one line for each combination.

Two combinations need one more word on the command line. There the program must say which, and must work with it:
an archive behind this library, whose port file the linker leaves out (--whole-archive); and objects behind a shared
library with version nodes, as it is installed, with -flto, where GNU ld 2.40 does not export the object in which the
core keeps its callback (-u).
"""
import argparse
import collections
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
# What the library prints when the linker has left the core's port file out, or has not exported its callback.
NAME_CORE_FIRST = "Name the core's library before -laiot_tunnel"
EXPORT = "-Wl,-u,g_logcb_handler"
SAYS = "says how to link"
SOURCES = ["aiot_state_api", "core_sysdep", "core_log", "aiot_mqtt_api", "core_adapter", "posix_port"]


def run(*command, **options):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)


def build(*command):
    result = run(*command)
    if result.returncode:
        sys.exit(f"{shlex.join(map(str, command))}:\n{result.stderr}")


class Matrix:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.counts = collections.Counter()
        self.objects = []

    def prepare(self, compiler, more=()):
        flags = ["-std=c99", "-D_DEFAULT_SOURCE", "-D_XOPEN_SOURCE=700", "-O1", "-g", "-fPIC", "-Wall", "-Wextra", "-Werror", *more,
                 f"-I{HERE}", f"-I{self.options.headers}"]
        self.objects = []
        for source in SOURCES + ["app"]:
            target = self.folder / f"{source}.o"
            build(compiler, *flags, "-c", HERE / f"{source}.c", "-o", target)
            self.objects.append(target)
        self.app = self.objects.pop()
        archive, shared = self.folder / "libcore.a", self.folder / "libcore.so"
        archive.unlink(missing_ok=True)
        build("gcc-ar" if more else "ar", "rcs", archive, *self.objects)
        build(compiler, "-shared", *self.objects, "-o", shared)
        self.cores = {"objects": self.objects, "archive": [archive], "shared": [shared],
                      "whole archive": ["-Wl,--whole-archive", archive, "-Wl,--no-whole-archive"]}

    def link(self, compiler, name, core, first, linkage, extra=()):
        if linkage == "shared":
            ours = [self.folder / "libaiot_tunnel.so"]
            after = []
        else:
            ours, after = [self.options.static], shlex.split(self.options.libs)
            if "-static" in extra:
                after = ["-lgcc_eh" if library == "-lgcc_s" else library for library in after]
        cores = self.cores[core]
        order = [*cores, *ours] if first == "core" else [*ours, *cores]
        program = self.folder / "app"
        program.unlink(missing_ok=True)
        result = run(compiler, "-o", program, self.app, *order, *after, "-pthread", f"-Wl,-rpath,{self.folder}", *extra)
        if result.returncode:
            return "does not link:\n" + result.stderr
        # An installed library is found under its soname, beside the file that was linked.
        places = f"{self.folder}:{pathlib.Path(self.options.shared).resolve().parent}"
        environment = os.environ | {"LD_LIBRARY_PATH": places}
        result = run(program, env=environment, timeout=60)
        if result.returncode == 0:
            return "good"
        behind = first == "ours" and result.returncode > 0
        if behind and core == "archive" and NAME_CORE_FIRST in result.stderr:
            return SAYS
        if behind and core == "objects" and linkage == "shared" and "-flto" in extra and EXPORT in result.stderr and EXPORT not in extra:
            return self.link(compiler, name, core, first, linkage, [*extra, EXPORT]).replace("good", SAYS)
        return f"exit status {result.returncode}:\n{result.stdout}{result.stderr}"

    def check(self, compiler, core, first, linkage, extra=()):
        name = f"{compiler}, core as {core}, {first} first, {linkage} {' '.join(extra)}".rstrip()
        result = self.link(compiler, name, core, first, linkage, extra)
        print(f"{name}: {result}", flush=True)
        self.counts[result if result in ("good", SAYS) else "failed"] += 1


def main():
    parser = argparse.ArgumentParser()
    for name in ["headers", "shared", "static"]:
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--libs", default="-lssl -lcrypto -lgcc_s -lutil -lrt -lm -ldl")
    parser.add_argument("--compilers", default="gcc clang")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        matrix = Matrix(options, pathlib.Path(folder))
        # Under its bare name, so that a program without a soname finds it through its run path.
        shutil.copy(options.shared, folder)
        for compiler in options.compilers.split():
            if not shutil.which(compiler):
                print(f"link-{compiler} is SKIPPED: no {compiler}")
                continue
            matrix.prepare(compiler)
            for core in matrix.cores:
                for first in ["core", "ours"]:
                    for linkage in ["shared", "static"]:
                        matrix.check(compiler, core, first, linkage)
                        if compiler == "gcc":
                            matrix.check(compiler, core, first, linkage, ["-Wl,--as-needed"])
                            matrix.check(compiler, core, first, linkage, ["-Wl,--gc-sections"])
                            if shutil.which("ld.gold") and core != "whole archive":
                                matrix.check(compiler, core, first, linkage, ["-fuse-ld=gold"])
                            if shutil.which("ld.lld"):
                                matrix.check(compiler, core, first, linkage, ["-fuse-ld=lld"])
            if compiler == "gcc":
                # A static executable: of the three kinds of core, objects and archives.
                for core, first in [("objects", "core"), ("objects", "ours"), ("archive", "core")]:
                    matrix.check(compiler, core, first, "static", ["-static"])
                matrix.prepare(compiler, ["-flto"])
                for core, first in [("objects", "core"), ("objects", "ours"), ("archive", "core")]:
                    for linkage in ["shared", "static"]:
                        matrix.check(compiler, core, first, linkage, ["-flto"])
    good, says, failed = (matrix.counts[result] for result in ("good", SAYS, "failed"))
    print(f"{good + says + failed} combinations: {good} good, {says} say how to link, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
