"""Runs the mutations: `python -m tests.mutations [-k WORD]`."""

import argparse
import contextlib
import enum
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.mutations import ALL, Mutation
from tests.mutations.model import mutated

ROOT = Path(__file__).resolve().parents[2]
TEST_S = 25
"""Seconds that one test may take with its fixtures; a mutation that makes it wait for ever is caught too."""
UNMUTATED_S = 120
"""The same where nothing is wrong and it has to come to its end, on a busy machine too."""
RUN_S = 40
"""The same with what comes before and after it."""
AT_ONCE = 2

_BROKEN = re.compile(r"^E +(NameError|SyntaxError|IndentationError|UnboundLocalError)\b", re.MULTILINE)
"""Errors of a mutation that is no program any more: they say nothing about the tests."""
_TIMED_OUT = re.compile(r"^E +Failed: Timeout|^\+{9,} Timeout", re.MULTILINE)

_WHERE = """
import importlib.util
for name in ("addons", "lb_core"):
    print(importlib.util.find_spec(name).submodule_search_locations[0])
"""
_WHERE_IN_MITMDUMP = _WHERE + "import addons.ai_lb, os; print(addons.ai_lb.__file__, flush=True); os._exit(0)"


class Result(enum.Enum):
    """What became of a mutation."""

    CAUGHT = "caught"
    TIMED_OUT = "caught by its time limit"
    SURVIVED = "SURVIVED"
    ERROR = "ERROR"


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of pytest."""

    code: int | None
    """None where it did not end in time."""
    said: str
    took_s: float


class Folder:
    """A copy of the tracked files, in which one mutation at a time stands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Modules are compiled once; their source's hash, not its time, tells if they are still right.
        _python(path, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "addons", "lb_core")
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "tests.mutations.worker"],
            cwd=path,
            env=_environment(path),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def check(self, mutation: Mutation) -> tuple[Result, Ran]:
        """Run the named test with the mutation in place."""
        file = self.path / mutation.file
        source = file.read_text()
        try:
            file.write_text(mutated(mutation, source))
            ran = self.run([mutation.test])
        finally:
            file.write_text(source)
        return _judged(ran), ran

    def run(self, tests: Iterable[str], *, test_s: int = TEST_S, limit_s: float = RUN_S) -> Ran:
        """Run these tests, each for `test_s` seconds at most, and all for `limit_s`."""
        arguments = ["-x", "-p", "no:cacheprovider", "--hypothesis-profile=mutations", "-m", "", "--tb=short"]
        asked = {"arguments": [*arguments, f"--timeout={test_s}", *tests], "limit_s": limit_s}
        started = time.monotonic()
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        self._worker.stdin.write(json.dumps(asked) + "\n")
        self._worker.stdin.flush()
        answer = json.loads(self._worker.stdout.readline())
        return Ran(answer["code"], answer["said"], time.monotonic() - started)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.communicate()  # it ends when nothing more is asked

    def imports_are_its_own(self) -> bool:
        """Whether tests, and the `mitmdump` that tests start, import what is in this folder."""
        mine = str(self.path)
        script = self.path / "where.py"
        script.write_text(_WHERE_IN_MITMDUMP)
        mitmdump = Path(sys.executable).with_name("mitmdump")
        found = [
            _python(self.path, "-c", _WHERE),
            _called(self.path, str(mitmdump), "-q", "-n", "-s", str(script)),
        ]
        script.unlink()
        lines = [line for said in found for line in said.splitlines()]
        return len(lines) == 5 and all(line.startswith(mine) for line in lines)


def _judged(ran: Ran) -> Result:
    if ran.code is None:
        return Result.TIMED_OUT
    if ran.code == 0:
        return Result.SURVIVED
    if ran.code != 1 or _BROKEN.search(ran.said):
        return Result.ERROR
    return Result.TIMED_OUT if _TIMED_OUT.search(ran.said) else Result.CAUGHT


def _environment(folder: Path) -> dict[str, str]:
    own = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(folder.parent)}
    return {**os.environ, **own}


def _called(folder: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env=_environment(folder), check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout


def _python(folder: Path, *arguments: str) -> str:
    return _called(folder, sys.executable, *arguments)


def _copied(parent: Path, number: int) -> Folder:
    folder = parent / str(number)
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if not (ROOT / name).is_file():
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return Folder(folder)


def _chosen(word: str) -> list[Mutation]:
    return [
        each
        for each in ALL
        if any(word.lower() in text.lower() for text in (each.what, each.file, each.test))
    ]


def _fail_unmutated(folder: Folder, chosen: list[Mutation]) -> bool:
    """Say which of the named tests fail as the product is; tried twice, as some go by the clock."""
    tests = dict.fromkeys(each.test for each in chosen)
    for _ in range(2):
        ran = folder.run(tests, test_s=UNMUTATED_S, limit_s=UNMUTATED_S * len(tests))
        if ran.code == 0:
            return False
    print(ran.said or "the named tests do not end without a mutation")
    return True


def main() -> int:
    """Tell what became of each mutation; 1 if a test did not notice one."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("-k", metavar="WORD", default="", help="those with it in the sentence, file or test")
    parser.add_argument("-v", action="store_true", help="show what pytest said")
    options = parser.parse_args()
    chosen = _chosen(options.k)
    if not chosen:
        parser.error(f"no mutation has {options.k!r} in it")
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        parent = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mutations-")))
        folders = [stack.enter_context(_copied(parent, number)) for number in range(AT_ONCE)]
        if not all(folder.imports_are_its_own() for folder in folders):
            print("what is imported is not what is mutated")
            return 1
        if _fail_unmutated(folders[0], chosen):
            return 1
        free: queue.SimpleQueue[Folder] = queue.SimpleQueue()
        for folder in folders:
            free.put(folder)

        def check(mutation: Mutation) -> Result:
            folder = free.get()
            try:
                result, ran = folder.check(mutation)
            finally:
                free.put(folder)
            lines = [f"{result.value}: {mutation.what} ({ran.took_s:.1f} s, {mutation.test})"]
            if options.v or result is Result.ERROR:
                lines.append(ran.said)
            print("\n".join(lines) + "\n", end="", flush=True)
            return result

        with ThreadPoolExecutor(AT_ONCE) as pool:
            results = list(pool.map(check, chosen))
    missed = [each for each, result in zip(chosen, results, strict=True) if "caught" not in result.value]
    print(f"{len(chosen)} mutations, {len(chosen) - len(missed)} caught, {time.monotonic() - started:.0f} s")
    for mutation in missed:
        print(f"not caught: {mutation.what} ({mutation.file})")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
