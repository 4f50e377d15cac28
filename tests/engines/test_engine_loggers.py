"""What holds for a TensorRT library and the process it is in, with the real one where it is installed."""

from __future__ import annotations

import gc
from types import SimpleNamespace

from children import explained, run_python
from marks import builds_rtx

from isnet_trt.engines import tensorrt_api
from isnet_trt.engines.tensorrt_api import collecting_logger, give_back

ONE_AFTER_THE_OTHER = """
import gc
from isnet_trt.engines.tensorrt_api import collecting_logger
from isnet_trt.engines.tensorrt_rtx import LIBRARY
library = LIBRARY.load()
first, second = library.Builder(collecting_logger(library)), library.Runtime(collecting_logger(library))
del first
gc.collect()
later = [collecting_logger(library) for _ in range(50)]  # takes the memory of a logger that was freed
class Creator(library.IPluginCreatorV3One):
    def __init__(self):
        library.IPluginCreatorV3One.__init__(self)
        self.name, self.plugin_version, self.plugin_namespace = "Unknown", "1", "nobody"
        self.field_names = library.PluginFieldCollection([])
assert not library.get_plugin_registry().deregister_creator(Creator())  # the registry says that it is unknown
assert not any(one.errors for one in later)
print("alive")
"""


@builds_rtx
def test_what_the_registry_says_after_the_first_user_of_the_library_is_gone() -> None:
    ran = run_python("-c", ONE_AFTER_THE_OTHER)
    assert (ran.returncode, ran.stdout) == (0, "alive\n"), explained(ran)


class Module:
    """As much of a library's module as a logger needs."""

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)


def test_as_many_loggers_as_are_in_use_at_once() -> None:
    one, other = Module(), Module()
    before = len(tensorrt_api._kept_alive)
    first = collecting_logger(one)
    for _ in range(5):
        logger = collecting_logger(one)
        assert logger is not first
        logger.log(1, "an error")
        logger.log(2, "a warning")
        assert logger.errors == ["an error"]
        give_back(logger)
        assert collecting_logger(other) is not logger
    gc.collect()
    assert len(tensorrt_api._kept_alive) == before + 2 + 5
    assert collecting_logger(one).errors == []
