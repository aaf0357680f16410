"""`python -m benchmarks [NAME …]`: run some benchmarks, each in a process of its own; all of them without a name, `gpu` only
where there is one."""

from __future__ import annotations

import subprocess
import sys

from stages.backends.hardware import gpu_count

NAMES = (
    "clustering",
    "conversion",
    "architectures",
    "pretrained",
    "precision",
    "op_overhead",
    "progress",
    "scaling",
    "large_model",
    "gpu",
)


def main() -> int:
    wanted = sys.argv[1:] or [name for name in NAMES if name != "gpu" or gpu_count()]
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    return max(subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode for name in wanted)


if __name__ == "__main__":
    sys.exit(main())
