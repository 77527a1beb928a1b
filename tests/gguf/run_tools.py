"""Calls programs of llama.cpp, one after the other, as the process that they take for their own.

Arguments: the library that they need, the library that they are in, and JSON of a list of (symbol,
arguments). Ends with the first code that is not zero.
"""

import ctypes
import json
import os
import sys

needed, tools, calls = sys.argv[1:]
ctypes.CDLL(needed, mode=ctypes.RTLD_GLOBAL)
library = ctypes.CDLL(tools)
for symbol, arguments in json.loads(calls):
    values = [os.fsencode(argument) for argument in arguments]
    code = getattr(library, symbol)(len(values), (ctypes.c_char_p * (len(values) + 1))(*values))
    if code:
        sys.exit(code)
