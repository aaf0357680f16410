"""`python -m benchmarks.coverage [OP …]`: measure which of TensorFlow's ops can be in an engine, and write it down.

Without names all ops are measured, and `results/coverage.json` and `docs/coverage.md` are written. With names these ops
are printed, and nothing is written. A child that dies costs the op that it was at.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import record
from benchmarks.coverage import scope, table
from benchmarks.coverage.digest import digest

CHILDREN = max(1, min(4, os.cpu_count() or 1))


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        _child()
        return 0
    start, sources = time.perf_counter(), digest()
    wanted, others = scope.split(scope.all_ops())
    if unknown := [name for name in sys.argv[1:] if name not in wanted]:
        print(f"not in scope: {', '.join(unknown)}", file=sys.stderr)
        return 2
    found = _measure(sys.argv[1:] or list(wanted))
    if sys.argv[1:]:
        print(json.dumps(found, indent=1))
        return 0
    seconds = round(time.perf_counter() - start)
    figures = {"digest": sources, "seconds": seconds, "ops": dict(sorted(found.items())), "out_of_scope": others}
    record.write("coverage", figures, quietly=True)
    table.write()
    print(f"{len(found)} ops in {seconds} s")
    return 0


def _measure(names: list[str]) -> dict[str, dict[str, dict[str, str]]]:
    """Results by op and dtype, from children that take the next op when they are ready."""
    todo, found, lock = list(reversed(names)), {}, threading.Lock()

    def feed() -> None:
        child: subprocess.Popen[str] | None = None
        while True:
            with lock:
                if not todo:
                    break
                name = todo.pop()
            if child is None or child.poll() is not None:
                command = [sys.executable, "-m", "benchmarks.coverage", "--child"]
                child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(name + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
            result = json.loads(line) if line else {"": {"tensorflow": f"the process died ({child.wait()})"}}
            with lock:
                found[name] = result
                print(f"\r{len(found)}/{len(names)} {name:40}", end="", file=sys.stderr)
        if child is not None:
            child.communicate()

    threads = [threading.Thread(target=feed) for _ in range(min(CHILDREN, len(names)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(file=sys.stderr)
    return found


def _child() -> None:
    """Answer op names on standard input with their results, one JSON line each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    from benchmarks.coverage.check import check
    from benchmarks.coverage.models import dtypes
    from stages.backends.isolated import Worker

    ops = scope.all_ops()
    with Worker("tensorrt_rtx", time_limit_seconds=60) as worker:
        for line in sys.stdin:
            op = ops[line.strip()]
            results = {dtype: check(op, dtype, worker) for dtype in dtypes(op)}
            answers.write(json.dumps(results) + "\n")
            answers.flush()


if __name__ == "__main__":
    sys.exit(main())
