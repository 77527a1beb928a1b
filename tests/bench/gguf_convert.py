"""llama.cpp's converter, to bfloat16. Arguments: MODEL OUT CACHE, where the converter is kept."""

import os
import sys
from pathlib import Path

from tests.llamacpp_source import convert_hf

if __name__ == "__main__":
    os.environ["XDG_CACHE_HOME"] = sys.argv[3]
    convert_hf(Path(sys.argv[1]), Path(sys.argv[2]), "bf16", unknown_pre="llama-bpe")
