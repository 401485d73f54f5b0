"""What these tests share lies beside them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for disk_shim.py, fault_runs.py and power_model.py
