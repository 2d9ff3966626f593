"""Stand-in for every program that the documents call: runs brats-inpainting on tiny weights, and notes all commands.

usage: typed.py PROGRAM ARGUMENTS…, with NOTES (a file), SERVER (a socket) and TINY (weights) set
       typed.py --serve SOCKET

Commands of brats-inpainting are run by forks of one server, which has imported everything already.
"""

import importlib
import json
import os
import socket
import sys
import traceback
from pathlib import Path

IMPORTED = ("cli", "cluster", "evaluate", "fill", "inpainter", "report", "train")
BUNDLED = ("volume-2", "small-2")
# Run by tests/test_cluster.py, test_train.py and test_cli.py: starts workers or needs some; trains for long; in the
# paper's frame, the attention of smoke.yaml's network takes a minute for each case.
ELSEWHERE = {"--cluster", "workspace/parameters/consistency.yaml", "exported/emasavedmodel_0.9999_2850000.pt"}


def quick(argv):
    """Return a command of brats-inpainting with tiny weights instead of bundled ones, and two steps."""
    argv = [os.environ["TINY"] if arg in BUNDLED else arg for arg in argv]
    fills = argv[0] == "infer" or "participant" in argv
    default = {"--weights": os.environ["TINY"]} if fills or argv[0] == "benchmark" else {}
    default |= {"--steps": "2"} if fills else {}
    default |= {"--data-path": "cases", "--preset": "fast"} if argv[0] == "benchmark" else {}
    return argv + [word for name, value in default.items() if name not in argv for word in (name, value)]


def serve(path):
    """Run each request (arguments, folder, environment, standard streams) in a fork; answer with its exit code."""
    from brats_inpainting import cli

    for name in IMPORTED:
        importlib.import_module(f"brats_inpainting.{name}")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        while True:
            with listening.accept()[0] as asked:
                request, streams, *_ = socket.recv_fds(asked, 65536, 2)
                if not (child := os.fork()):
                    run(cli, json.loads(request), streams)
                for stream in streams:
                    os.close(stream)
                asked.sendall(bytes([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256]))


def run(cli, request, streams):
    """Run a command in this fork, which ends with it."""
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # a pipe, where the server may have a file
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    code = 0
    try:
        cli.main(request["argv"])
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001 - a fork must never return to the server's loop
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(program, *argv):
    program = Path(program).name
    with Path(os.environ["NOTES"]).open("a") as file:
        file.write(json.dumps([program, argv]) + "\n")
    if program != "brats-inpainting" or ELSEWHERE & {*argv}:
        return 0
    request = {"argv": quick([*argv]), "folder": str(Path.cwd()), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ["SERVER"])
        socket.send_fds(server, [json.dumps(request).encode()], [1, 2])
        return server.recv(1)[0]


if __name__ == "__main__":
    sys.exit(serve(sys.argv[2]) if sys.argv[1] == "--serve" else main(*sys.argv[1:]))
