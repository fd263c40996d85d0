"""The folders that tests read."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
SUPPORT = ROOT / "tests" / "support"
SHARED = ROOT.parent / "shared"  # beside a checkout of the developers; nowhere else
