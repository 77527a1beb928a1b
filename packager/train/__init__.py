"""Fine-tuning a base with LoRA, and stamping the adapter with the exact base it was trained on."""

from packager.train.dataset import Example, parse_examples, read_examples
from packager.train.finetune import TrainSettings, train

__all__ = ["Example", "TrainSettings", "parse_examples", "read_examples", "train"]
