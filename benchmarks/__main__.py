"""`python -m benchmarks [NAME …]`: run some benchmarks, each in a process of its own; all of them without a name."""

from __future__ import annotations

import subprocess
import sys

NAMES = ("clustering", "conversion", "architectures", "pretrained", "op_overhead", "progress", "scaling", "large_model")


def main() -> int:
    wanted = sys.argv[1:] or list(NAMES)
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    return max(subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode for name in wanted)


if __name__ == "__main__":
    sys.exit(main())
