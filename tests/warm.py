"""Runs commands and code in processes that need not import torch first: a warm process forks for each.

As a script it is the warm process, which `warm` starts; `call` is its client; what `write_command` writes stands for
`inflate3d`.
"""

import contextlib
import importlib
import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path


def call(place: str, arguments: list[str], streams: tuple[int, int, int] = (0, 1, 2)) -> int:
    """Run `inflate3d ARGUMENTS`, or `-c CODE`, in this folder, with these streams; give the exit code."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(place)
        request = json.dumps([arguments, str(Path.cwd()), dict(os.environ)]).encode()
        socket.send_fds(connection, [len(request).to_bytes(8, "big")], list(streams))
        connection.sendall(request)
        return int(connection.makefile().read() or "1")  # nothing, where the process died


@contextlib.contextmanager
def warm(path: Path, *packages: str) -> Iterator[None]:
    """Let the command `path`, which is written, stand for `inflate3d` in the block; `packages` are imported too."""
    place = path.with_suffix(".socket")
    server = subprocess.Popen([sys.executable, __file__, place, *packages], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        write_command(path, place)
        yield
    finally:
        server.kill()
        server.wait()


def write_command(path: Path, place: Path) -> None:
    """Write a command that behaves as `inflate3d` does."""
    code = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]; from warm import call; "
    code += f"sys.exit(call({str(place)!r}, sys.argv[1:]))"
    path.write_text(f"#!/bin/sh\nexec {sys.executable} -S -E -c '{code.replace(chr(39), chr(34))}' \"$@\"\n")
    path.chmod(0o755)


def serve(place: str, *packages: str) -> None:
    """Import what commands need, tell that all is ready, and fork for each call."""
    import timm  # noqa: F401
    import torchvision.models  # noqa: F401

    import inflate3d.cli
    import inflate3d.results.features
    import inflate3d.results.predict  # noqa: F401

    for package in packages:
        importlib.import_module(package)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                _run(connection)
            connection.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _run(connection: socket.socket) -> None:
    """Be the process that was asked for, and end."""
    head, streams, *_ = socket.recv_fds(connection, 8, 3)
    arguments, folder, environment = json.loads(connection.makefile("rb").read(int.from_bytes(head, "big")))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, closefd=False)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    code = 0
    try:
        if arguments[:1] == ["-c"]:
            exec(compile(arguments[1], "<docs>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = ["inflate3d", *arguments]
            import inflate3d.cli

            inflate3d.cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(str(code).encode())
    os._exit(0)


if __name__ == "__main__":
    serve(*sys.argv[1:])
