"""Inside the network namespace: run a program, and lend its loopback ports to Unix sockets.

Reads one line of JSON (``command``, ``relays``: Unix socket path to port, ``isolated``) from
standard input, then runs until standard input closes. Nothing of it outlives the test.
"""

import asyncio
import ctypes
import fcntl
import json
import signal
import socket
import struct
import sys

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_PR_SET_PDEATHSIG = 1


def raise_loopback():
    """As ``ip link set lo up``."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def die_with_parent():
    """Let the kernel end this process when its parent is gone, however it ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def pump(reader, writer):
    """Copy until the end of the stream."""
    try:
        while chunk := await reader.read(1 << 16):
            writer.write(chunk)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def main():
    """Start the program and the relays; end with standard input."""
    loop = asyncio.get_running_loop()
    job = json.loads(await loop.run_in_executor(None, sys.stdin.readline))
    if job["isolated"]:
        raise_loopback()
    program = await asyncio.create_subprocess_exec(*job["command"], preexec_fn=die_with_parent)

    def lend(port):
        async def serve(reader, writer):
            try:
                inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                writer.close()
                return
            await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

        return serve

    for path, port in job["relays"].items():
        await asyncio.start_unix_server(lend(port), path)
    closed = loop.run_in_executor(None, sys.stdin.read)
    ended = asyncio.ensure_future(program.wait())
    await asyncio.wait([closed, ended], return_when=asyncio.FIRST_COMPLETED)
    if not ended.done():
        program.terminate()
    await ended


die_with_parent()
asyncio.run(main())
