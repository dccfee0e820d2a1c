"""DPO: a training, a second one on the same rows and base, and TRL's; with the options of `train.py`.

python benchmarks/dpo.py --data PAIRS.json --rounds 2
"""

from __future__ import annotations

import sys

import train

OPTIONS = ["--method", "dpo", "--rows", "16", "--steps", "4", "--batch", "2"]
SIDES = ["--sides", "mlflow-ft", train.AGAIN, "TRL"]

if __name__ == "__main__":
    sys.argv[1:1] = [*OPTIONS, *SIDES]  # those of the command line come later, and replace them
    train.main()
