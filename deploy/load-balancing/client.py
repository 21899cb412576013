"""Classifies pictures with requests spread over all pods of a headless Service, by gRPC's own round robin.

python client.py dns:///convoy-headless.convoy:8001 digits digit.png ...
"""

import sys
from pathlib import Path

import grpc

from service.pb.convoy.v1 import classifier_pb2 as pb

SERVICE_CONFIG = Path(__file__).with_name("service-config.json").read_text()


def main(target: str, model: str, *pictures: str) -> None:
    """Sends each picture as a request of its own."""
    options = [("grpc.service_config", SERVICE_CONFIG), ("grpc.max_reconnect_backoff_ms", 1000)]
    with grpc.insecure_channel(target, options) as channel:
        classify = channel.unary_unary(
            "/convoy.v1.Classifier/Classify", pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString
        )
        for picture in pictures:
            request = pb.ClassifyRequest(model=model, items=[pb.Item(encoded=Path(picture).read_bytes())])
            # A deadline always: with waitForReady a call waits until a server can be reached.
            best = classify(request, timeout=30).results[0].predictions[0]
            print(f"{picture}: {best.label} {best.probability:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
