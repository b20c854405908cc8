"""Some processes on this machine in one gloo group, which run functions together."""

import multiprocessing
import os
import socket

import pyro
import torch

from pyro_vae.optim.processes import started


class Ranks:
    """Processes that are started once; each call runs one function on all of them.

    Functions and arguments have to be picklable; tensors go as numpy arrays.
    """

    def __init__(self, size=2, *, timeout=20.0):
        context = multiprocessing.get_context("spawn")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.pipes, self.processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=serve, args=(rank, size, port, timeout, theirs), daemon=True
            )
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def __call__(self, function, *args):
        """What the function returns on each process, or the error that it raised there."""
        for pipe in self.pipes:
            pipe.send((function, args))
        return [received(pipe) for pipe in self.pipes]

    def close(self):
        for process in self.processes:
            process.kill()
            process.join()


def received(pipe):
    try:
        return pipe.recv()
    except (EOFError, ConnectionResetError):
        return "died"


def serve(rank, size, port, timeout, pipe):
    """Run what comes through the pipe, as a worker that torchrun started."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with started(device="cpu", timeout=timeout):
        while True:
            function, args = pipe.recv()
            try:
                with pyro.get_param_store().scope():
                    answer = function(*args)
            except Exception as error:
                answer = error
            pipe.send(answer)
