"""Classifies pictures with Ray Data: one actor a core, each with the model in its process.

python classify.py LIST MODEL OUTPUT

LIST has the path of a picture in each line. MODEL is a model file, or the folder of a model. OUTPUT becomes a folder of Parquet
files with a row for each line: the best label and its probability, or why there is none.
"""

import sys
from pathlib import Path

import pyarrow as pa
import ray

from service import Local
from service.client import Outcome
from service.errors import ConvoyError

SCHEMA = pa.schema([("path", pa.string()), ("label", pa.string()), ("probability", pa.float64()), ("error", pa.string())])
BATCH = 500


class Classifier:
    """An actor: Ray makes it once in its process, and again should that be lost."""

    def __init__(self, model: str) -> None:
        self.local = Local(model, cpus=1)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The rows of a batch of paths."""
        return pa.Table.from_pylist([row(outcome) for outcome in self.local.classify_many(batch["path"].to_pylist())], SCHEMA)


def row(outcome: Outcome) -> dict[str, object]:
    """What became of a picture. What concerns all of them, such as a model that is lost, has been raised before."""
    path, answer = outcome.image, outcome.answer
    if isinstance(answer, ConvoyError):
        return {"path": path, "error": str(answer)}
    best = answer.results[0][0]
    return {"path": path, "label": best.label, "probability": best.probability}


def main(pictures: str, model: str, output: str) -> None:
    """Runs on the cluster that RAY_ADDRESS names, or else on this machine."""
    ray.init()
    paths = pa.table({"path": [line for line in Path(pictures).read_text().splitlines() if line]})
    batches = ray.data.from_arrow([paths.slice(start, BATCH) for start in range(0, len(paths), BATCH)])
    actors = ray.data.ActorPoolStrategy(size=int(ray.cluster_resources()["CPU"]))
    # Half of each core is left to the tasks that write, or they would wait for the actors, and the actors for them.
    rows = batches.map_batches(
        Classifier, fn_constructor_kwargs={"model": model}, batch_format="pyarrow", batch_size=None, compute=actors, num_cpus=0.5
    )
    rows.write_parquet(output, mode="error", ray_remote_args={"num_cpus": 0.5})


if __name__ == "__main__":
    main(*sys.argv[1:])
