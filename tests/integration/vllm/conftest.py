import json

import pytest

from engine_process import MODEL, EngineProcess

MOST = 8


@pytest.fixture(scope="session")
def engines():
    """start(switch, environment, **engine arguments): an engine process, kept for tests that ask for
    the same; starting one takes longer than most tests. The one not asked for for longest ends when
    there are more than MOST: each takes 2 GB."""
    running = {}

    def start(switch=None, environment=None, **engine):
        arguments = {"model": MODEL, "enforce_eager": True, "max_model_len": 8192,
                     "dtype": "float32", **engine}
        key = json.dumps([switch, environment, arguments], sort_keys=True)
        process = running.pop(key, None) or EngineProcess(switch, environment, **arguments)
        running[key] = process
        while len(running) > MOST:
            running.pop(next(iter(running))).close()
        return process

    yield start
    for process in running.values():
        process.end()
    for process in running.values():
        process.close()
