"""The mini corpus is made by a recipe's own scripts, which import one another by plain names."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "egs" / "mini_vsdial" / "local"))
