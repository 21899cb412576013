"""From a query to its answer: classifier, request, decoding, queue, scheduling, batcher; and the repository of models."""
