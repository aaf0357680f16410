"""One script a figure; each writes `benchmarks/results/<name>.json` with the machine that it ran on."""
