"""Helpers that the tests of this folder share can be imported by their names."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # cats.py
