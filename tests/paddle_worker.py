"""Runs Paddle Inference in a process of its own for the tests: it does not bear Paddle Lite beside it in one.

Started by `tests.small_graphs.Paddle`. Each line of standard input names a model's directory, a file with the input
and a file for the output; a line is answered when that is done.
"""

import os
import sys
from pathlib import Path

import numpy as np
from paddle import inference


def run(directory: Path, x: np.ndarray) -> np.ndarray:
    config = inference.Config(str(directory / "inference.pdmodel"), str(directory / "inference.pdiparams"))
    config.disable_glog_info()
    config.disable_gpu()
    config.switch_ir_optim(False)
    predictor = inference.create_predictor(config)
    predictor.get_input_handle(predictor.get_input_names()[0]).copy_from_cpu(x)
    predictor.run()
    return predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        directory, given, out = line.rstrip("\n").split("\t")
        try:
            np.save(out, run(Path(directory), np.load(given)))
            answers.write("done\n")
        except Exception as error:  # whatever it is, the test that asked shows it
            answers.write(f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}\n")
        answers.flush()


main()
