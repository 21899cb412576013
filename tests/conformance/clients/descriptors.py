"""Prints the messages and methods of a client's copy of the protocol, as JSON."""

import importlib
import json
import os
import sys
from typing import Any

MODULES = {
    "triton": ("tritonclient.grpc.service_pb2", "tritonclient.grpc.model_config_pb2"),
    "kserve": ("kserve.protocol.grpc.grpc_predict_v2_pb2",),
}


def main() -> None:
    found: dict[str, dict[str, Any]] = {"methods": {}, "messages": {}, "enums": {}}
    for name in MODULES[os.environ["CLIENT"]]:
        file = importlib.import_module(name).DESCRIPTOR
        for service in file.services_by_name.values():
            for method in service.methods:
                types = method.input_type.full_name, method.output_type.full_name
                found["methods"][method.name] = [*types, method.client_streaming, method.server_streaming]
        messages = list(file.message_types_by_name.values())
        while messages:
            message = messages.pop()
            messages += message.nested_types
            found["messages"][message.full_name] = {
                field.name: [field.number, field.type, field.is_repeated] for field in message.fields
            }
        for enum in file.enum_types_by_name.values():
            found["enums"][enum.full_name] = {value.name: value.number for value in enum.values}
    json.dump(found, sys.stdout)


main()
