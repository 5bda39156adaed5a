"""Every method of every service of ``proto/``, found in the generated code and listed nowhere."""

import importlib
import pkgutil
from collections.abc import Mapping

from google.protobuf.descriptor import MethodDescriptor

import comms.pb


def _methods() -> dict[str, MethodDescriptor]:
    found: dict[str, MethodDescriptor] = {}
    for module in pkgutil.iter_modules(comms.pb.__path__, "comms.pb."):
        if not module.name.endswith("_pb2"):
            continue
        file = importlib.import_module(module.name).DESCRIPTOR
        for service in file.services_by_name.values():
            found |= {f"/{service.full_name}/{m.name}": m for m in service.methods}
    return found


METHODS: Mapping[str, MethodDescriptor] = _methods()
"""Path on the wire -> what the service says of it."""
