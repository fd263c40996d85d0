"""`python -m intl_bench` is the same command as `intl-bench`."""

from intl_bench.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
