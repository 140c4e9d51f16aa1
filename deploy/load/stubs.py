"""The stubs of shoal.v1.Inference, made from the proto files when they are first asked for."""

import importlib
import os
import pathlib
import sys
import tempfile

PROTO = pathlib.Path(os.environ.get("SHOAL_PROTO", pathlib.Path(__file__).resolve().parents[2] / "proto"))


def load():
    """Returns (messages, services) of proto/shoal/v1/inference.proto."""
    from grpc_tools import protoc

    folder = tempfile.TemporaryDirectory(prefix="shoal-stubs-")
    target = "shoal/v1/inference.proto"
    arguments = ["protoc", f"-I{PROTO}", f"--python_out={folder.name}", f"--grpc_python_out={folder.name}",
                 str(PROTO / target)]
    if protoc.main(arguments) != 0:
        sys.exit(f"load.py: error: {PROTO / target} could not be compiled")
    sys.path.insert(0, folder.name)
    try:
        return (importlib.import_module("shoal.v1.inference_pb2"),
                importlib.import_module("shoal.v1.inference_pb2_grpc"))
    finally:
        sys.path.remove(folder.name)
        folder.cleanup()
