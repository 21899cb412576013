"""Classifies pictures with Spark: each Python worker, one a core, has the model in its process.

spark-submit classify.py LIST MODEL OUTPUT

LIST has the path of a picture in each line. MODEL is a model file, or the folder of a model. OUTPUT becomes a folder of Parquet
files with a row for each line: the best label and its probability, or why there is none.
"""

import functools
import sys
from collections.abc import Iterator

import pandas as pd
from pyspark.sql import SparkSession

from service import Local
from service.client import Outcome
from service.errors import ConvoyError

COLUMNS = {"path": "string", "label": "string", "probability": "double", "error": "string"}


@functools.cache
def local(model: str) -> Local:
    """The model of this Python worker, which Spark keeps from task to task."""
    return Local(model, cpus=1)


def rows(model: str, batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """The rows of a task's paths."""
    for batch in batches:
        found = [row(outcome) for outcome in local(model).classify_many(batch["path"])]
        yield pd.DataFrame(found, columns=list(COLUMNS), dtype=object)  # Spark cannot convert the strings of pandas 3


def row(outcome: Outcome) -> dict[str, object]:
    """What became of a picture. What concerns all of them, such as a model that is lost, has been raised before."""
    path, answer = outcome.image, outcome.answer
    if isinstance(answer, ConvoyError):
        return {"path": path, "error": str(answer)}
    best = answer.results[0][0]
    return {"path": path, "label": best.label, "probability": best.probability}


def main(pictures: str, model: str, output: str) -> None:
    """Runs where spark-submit says: --master, --num-executors, --executor-cores."""
    spark = SparkSession.builder.appName("classify").getOrCreate()
    spark.sparkContext.addPyFile(__file__)

    def classify(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        import classify  # the worker's copy of this file: what it has in its cache stays there

        return classify.rows(model, batches)

    paths = spark.read.text(pictures).withColumnRenamed("value", "path").where("path != ''")
    tasks = paths.repartition(max(spark.sparkContext.defaultParallelism, paths.count() // 500))
    tasks.mapInPandas(classify, ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())).write.parquet(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
