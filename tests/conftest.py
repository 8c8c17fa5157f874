"""What every test runs under: one thread of BLAS, so that workers do not fight, a calibration cache of its own, and no
decisions by time, which differ between machines."""

import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no mistake
hypothesis.settings.load_profile("untimed")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is imported; processes that tests start inherit it
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _signals_of_a_terminal() -> None:
    """Under nohup and in a background job, signals are ignored, and commands that tests start would inherit that."""
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNXSHOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(os, "fsync", lambda _: None)  # results need not outlive a loss of power
        yield


@pytest.fixture
def worded_as_options() -> Iterator[None]:
    """Messages name options as the command line does; elsewhere they speak Python."""
    from onnxshot.wording import on_command_line

    with on_command_line():
        yield


@pytest.fixture(scope="session", autouse=True)
def _untimed() -> Iterator[None]:
    from onnxshot.stages import make_quantized
    from onnxshot.stages.place_by_time import Placed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_quantized, "place_by_time", lambda prepared, *_: Placed(prepared))
        yield
