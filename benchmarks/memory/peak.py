"""Measure the resident memory of this process, and its peak during a call."""

import ctypes
import gc
import re


def resident():
    """Return the resident bytes, after returning freed memory to the OS."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status("VmRSS")


def peak_resident(call):
    """Return the largest number of resident bytes during one call.

    The kernel's high-water mark is reset first (Linux:
    `/proc/self/clear_refs`). Call this in a separate process, because
    allocators do not return all freed memory.
    """
    resident()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    call()
    return _status("VmHWM")


def _status(field):
    with open("/proc/self/status") as file:
        found = re.search(rf"{field}:\s+(\d+) kB", file.read())
    assert found
    return int(found.group(1)) * 1024
