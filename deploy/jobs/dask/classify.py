"""Classifies pictures with Dask: one worker a core, each with the model in its process.

python classify.py LIST MODEL OUTPUT

LIST has the path of a picture in each line. MODEL is a model file, or the folder of a model. OUTPUT becomes a folder of Parquet
files with a row for each line: the best label and its probability, or why there is none.
"""

import os
import sys
from pathlib import Path

import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
from dask.distributed import Client, LocalCluster, Worker, WorkerPlugin, get_worker

from service import Local
from service.client import Outcome
from service.errors import ConvoyError

SCHEMA = pa.schema([("path", pa.string()), ("label", pa.string()), ("probability", pa.float64()), ("error", pa.string())])


class Model(WorkerPlugin):
    """Loads the model when a worker starts, and in each that takes the place of one that was lost."""

    def __init__(self, path: str) -> None:
        self.path = path

    def setup(self, worker: Worker) -> None:
        """Called in the worker's process, before its first task."""
        worker.local = Local(self.path, cpus=1)

    def teardown(self, worker: Worker) -> None:
        """Called when the worker ends."""
        worker.local.close()


def rows(batch: pd.DataFrame) -> pd.DataFrame:
    """The rows of a partition's paths."""
    found = [row(outcome) for outcome in get_worker().local.classify_many(batch["path"])]
    return pd.DataFrame(found, columns=SCHEMA.names).astype({"probability": "float64"})


def row(outcome: Outcome) -> dict[str, object]:
    """What became of a picture. What concerns all of them, such as a model that is lost, has been raised before."""
    path, answer = outcome.image, outcome.answer
    if isinstance(answer, ConvoyError):
        return {"path": path, "error": str(answer)}
    best = answer.results[0][0]
    return {"path": path, "label": best.label, "probability": best.probability}


def main(pictures: str, model: str, output: str) -> None:
    """Runs on the cluster that DASK_SCHEDULER_ADDRESS names, or else on this machine."""
    if Path(output).exists():
        sys.exit(f"{output} is there already")
    cluster = os.environ.get("DASK_SCHEDULER_ADDRESS") or LocalCluster(threads_per_worker=1)
    with Client(cluster) as client:
        client.register_plugin(Model(model))
        paths = [line for line in Path(pictures).read_text().splitlines() if line]
        partitions = dd.from_pandas(pd.DataFrame({"path": paths}), chunksize=500)
        partitions.map_partitions(rows, meta=SCHEMA.empty_table().to_pandas()).to_parquet(output, schema=SCHEMA, write_index=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
