"""Prints how faithful each guidance, and each window, is where the posterior is known.

Mean error in posterior standard deviations, ratio of standard deviations, relative error of the
covariance of successive states; exact for methods that are affine, else from 1,024 members (whose
own mean error is 3 %).

    python scripts/bench_fidelity.py            # both tables, some minutes on one core
    python scripts/bench_fidelity.py --table composition
"""

import argparse

import torch

from sda.fidelity import composition_rows, guidance_rows, markdown

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", choices=("guidance", "composition", "both"), default="both")
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    if arguments.table != "composition":
        for line in markdown(guidance_rows(arguments.lengths)):
            print(line, flush=True)
    if arguments.table != "guidance":
        for line in markdown(composition_rows()):
            print(line, flush=True)
