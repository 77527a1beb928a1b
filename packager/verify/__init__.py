"""Checking a bundle against its manifest, its base and its adapter."""

import logging

# On some processors bitsandbytes, which PEFT imports where it is installed, warns at once. Without
# a handler that goes to the screen; who configures logging still hears of it.
logging.getLogger("bitsandbytes").addHandler(logging.NullHandler())
