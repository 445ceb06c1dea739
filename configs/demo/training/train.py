"""Train the demonstration model and its adapters: `python -m configs.demo.training.train`."""

import argparse
from pathlib import Path

import torch

from configs.demo.training.adapters import RECIPES, train_adapter
from configs.demo.training.base import train_base

DEMO_FOLDER = Path(__file__).resolve().parents[1]
BASE_STEPS = 3000
SEED = 1


def main() -> None:
    """Train what the command line asks for, everything by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=["base", *RECIPES], help="train only these")
    parser.add_argument("--folder", type=Path, default=DEMO_FOLDER, help="where results go")
    parser.add_argument("--base-steps", type=int, default=BASE_STEPS)
    parser.add_argument("--threads", type=int, help="threads of torch; default: its own choice")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    wanted = arguments.only or ["base", *RECIPES]
    if "base" in wanted:
        train_base(arguments.folder / "model", steps=arguments.base_steps, seed=SEED)
    for name in RECIPES:
        if name in wanted:
            train_adapter(
                name, arguments.folder / "model", arguments.folder / "adapters" / name, seed=SEED
            )


if __name__ == "__main__":
    main()
