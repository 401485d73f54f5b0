"""What the tests of hostile files share."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for hostile_corpus.py and hostile_fuzzer.py, which tests share
