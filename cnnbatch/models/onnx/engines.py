"""The libraries that run an ONNX file: ONNX Runtime, which is always there, and OpenVINO.

Both check for themselves, too, that a file's tensors lie in its own folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from cnnbatch.errors import UserError
from cnnbatch.models.passes import trying
from cnnbatch.models.runtime.backends import Unavailable, openvino_config, openvino_package
from cnnbatch.models.weights.onnx_files import OnnxFile, package

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cnnbatch.types import Runtime

Feed = Mapping[str, "NDArray[Any]"]
Call = Callable[[Feed], Sequence["NDArray[Any]"]]
"""From inputs by name to outputs in the file's order; no later call changes them."""

_LEAST_S = 60.0  # that a file may take to be loaded, however little time a batch has
_ERRORS_ONLY = 4  # of ONNX Runtime's severities; it raises whatever it would print above


def onnx_runtime(file: OnnxFile, runtime: Runtime) -> Call:
    """Return a file as ONNX Runtime runs it, with operators of its own only.

    Raises:
        Unavailable: it does not compute in this precision.
        UserError: it can't be imported, or refuses the file.
    """
    if runtime.precision != "fp32":
        raise Unavailable(f"ONNX Runtime computes in the file's own precision, not in {runtime.precision}")
    library = package("onnxruntime")
    library.set_default_logger_severity(_ERRORS_ONLY)
    library.disable_telemetry_events()
    try:
        with trying(least_s=_LEAST_S):
            session = library.InferenceSession(
                str(file.path),
                _options(library, runtime.threads),
                providers=_providers(library, runtime.device),
            )
    except Exception as error:  # It has a type of its own for each of its status codes.
        raise UserError(
            f"task.weights: ONNX Runtime can't load {str(file.path)!r}: {_words(error)}\n"
            "  what to do: check the file with onnx.checker, or export it with standard operators only"
        ) from error
    return partial(_run, library, session, file)


def _options(library: Any, threads: int) -> Any:
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # Threads that wait by spinning would take the decoders' time (measured on two cores: 13 % of it).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _providers(library: Any, device: str) -> list[str]:
    wanted = ["CUDAExecutionProvider"] if device == "cuda" else []
    return [name for name in wanted if name in library.get_available_providers()] + ["CPUExecutionProvider"]


def _run(library: Any, session: Any, file: OnnxFile, feed: Feed) -> Sequence[NDArray[Any]]:
    options = library.RunOptions()
    try:
        with trying(partial(setattr, options, "terminate", True)):
            found: Sequence[NDArray[Any]] = session.run([port.name for port in file.outputs], feed, options)
    except Exception as error:  # As above; callers know RuntimeError from torch.
        if options.terminate:
            raise UserError(
                f"task.weights: {file.path.name} gives nothing for a picture within compute.batch_timeout_s\n"
                "  what to do: look at the file, which may go round in circles, or give it more seconds"
            ) from error
        raise RuntimeError(_words(error)) from error
    return found


def _words(error: Exception) -> str:
    return " ".join(str(error).split())


def openvino(file: OnnxFile, runtime: Runtime) -> Call:
    """Return a file as OpenVINO runs it; shapes stay as free as the file leaves them.

    Raises:
        Unavailable: it is not there, not for this device or precision, or refuses the file.
    """
    config = openvino_config(runtime)
    core = openvino_package().Core()
    try:
        with trying(least_s=_LEAST_S):
            compiled = core.compile_model(core.read_model(str(file.path)), "CPU", config)
    except Exception as error:  # Its reader refuses in its own ways; each means that ONNX Runtime stays.
        raise Unavailable(f"OpenVINO can't read {file.path.name}: {_words(error)[:200]}") from error
    return partial(_infer, compiled.create_infer_request())


def _infer(request: Any, feed: Feed) -> Sequence[NDArray[Any]]:
    request.infer(dict(feed), share_inputs=True)
    return [tensor.data.copy() for tensor in request.output_tensors]
