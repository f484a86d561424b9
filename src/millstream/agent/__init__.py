"""What runs inside every machine. Standard library only; mounted read-only, run by the image's own Python."""

from pathlib import Path
from typing import Final

VERSION: Final = "11-23-2026"  # MM-DD-YYYY, as the API shows agent versions

FOLDER: Final = Path(__file__).parent
