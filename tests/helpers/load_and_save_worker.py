"""A process of its own for files that may crash or hang a parser: reads [path, out, seconds] lines, answers each."""

import json
import resource
import signal
import sys
import time
from pathlib import Path

from load_and_save import load_and_save

from onnxshot.errors import OnnxshotError

MEMORY = 6 << 30  # address space: a file of a few bytes that asks for more than this is a finding


def main() -> None:
    """Answer every line of stdin with error (class or null), text, exit_code and seconds of CPU.

    SIGPROF ends the process where a file takes more seconds of CPU than its line allows.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print("ready", flush=True)
    for line in sys.stdin:
        path, out, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        answer: dict[str, object] = {"error": None, "text": "", "exit_code": 0}
        start = time.process_time()
        try:
            load_and_save(Path(path), Path(out))
        except OnnxshotError as e:
            answer = {"error": type(e).__name__, "text": str(e), "exit_code": e.exit_code}
        except Exception as e:
            answer = {"error": type(e).__name__, "text": repr(e), "exit_code": 1}
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer | {"seconds": time.process_time() - start}), flush=True)


if __name__ == "__main__":
    main()
