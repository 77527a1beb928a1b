"""lorapack: turn a trained adapter into releases that provably behave like it did in training."""

__version__ = "0.1.0"
