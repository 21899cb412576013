"""Runs inside the cluster, in a pod of the serving image: traffic for some seconds, what came of it as one line of JSON.

Usage: python in_cluster.py SECONDS MODEL PICTURE SERVICE_CONFIG. Needs nothing of the tests. Half of the clients go round the pods
of the headless Service; half make a fresh connection to the ClusterIP Service for each request.
"""

import json
import sys
import threading
import time
from pathlib import Path

import grpc

from service.pb.convoy.v1 import classifier_pb2 as pb

ROUND_ROBIN, FRESH = "dns:///convoy-headless:8001", "dns:///convoy:8001"


def client(target: str, options: list, request: pb.ClassifyRequest, until: float, results: list[str]) -> None:
    channel = grpc.insecure_channel(target, options)
    while time.monotonic() < until:
        try:
            channel.unary_unary(
                "/convoy.v1.Classifier/Classify", pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString
            )(request, timeout=30)
            results.append("")
        except grpc.RpcError as error:
            results.append(f"{target}: {error.code().name} {error.details()}")
        if target == FRESH:
            channel.close()
            channel = grpc.insecure_channel(target, options)
        time.sleep(0.02)
    channel.close()


def main(seconds: str, model: str, picture: str, service_config: str) -> None:
    request = pb.ClassifyRequest(model=model, items=[pb.Item(encoded=Path(picture).read_bytes())])
    balanced = [("grpc.service_config", Path(service_config).read_text()), ("grpc.max_reconnect_backoff_ms", 1000)]
    fresh = [("grpc.use_local_subchannel_pool", 1)]
    until = time.monotonic() + float(seconds)
    results: list[str] = []
    kinds: list[tuple[str, list]] = [(ROUND_ROBIN, balanced), (FRESH, fresh)] * 4
    threads = [threading.Thread(target=client, args=(*kind, request, until, results)) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failures = [result for result in results if result]
    print(json.dumps({"answered": len(results) - len(failures), "failed": len(failures), "failures": failures[:5]}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
